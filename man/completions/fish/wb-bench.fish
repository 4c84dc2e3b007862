# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_wb_bench_global_optspecs
    string join \n json v/verbose config= compare= cache-device= backing-device= guest full y/yes html= only= rounds= reverse limit= save= ssd-model= disk-model= ssd-size= disk-size= dilation= transport= h/help V/version
end

function __fish_wb_bench_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_wb_bench_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_wb_bench_using_subcommand
    set -l cmd (__fish_wb_bench_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c wb-bench -n "__fish_wb_bench_needs_command" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l compare -d 'Compare with these caches' -r -f -a "bcache\t'bcache, writeback mode'
dm-cache\t'dm-cache, policy smq, writeback mode'
dm-writecache\t'dm-writecache'
dm-writeboost\t'dm-writeboost, the kernel module'
raw-ssd\t'The bare cache device: an upper bound'
raw-disk\t'The bare backing device: what there is without cache'"
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l cache-device -d 'Run on this host, with this fast device. All of its content is lost' -r -F
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l backing-device -d 'Run on this host, with this slow device. All of its content is lost' -r -F
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l html -d 'Write a report with plots, one self-contained HTML file' -r -F
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l only -d 'Run only these workloads, with what they continue' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l rounds -d 'Repetitions of the workloads that are repeated; the order of the systems turns with each [default: 2, 3 with --full]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l limit -d 'End the run after this time with what there is [default: 20min, none with --full]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l save -d 'Write the result as JSON, for `wb-bench report`' -r -F
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l ssd-model -d 'The guest\'s SSD is modelled on this one [default: sata-ssd]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l disk-model -d 'The guest\'s disk is modelled on this one [default: hdd]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l ssd-size -d 'Bytes of the guest\'s SSD [default: 256MiB]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l disk-size -d 'Bytes of the guest\'s disk [default: 2GiB]' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l dilation -d 'How many times slower than their originals the guest\'s devices are, because its processor is emulated; left out, so much that an empty ublk device does three times what the modelled SSD does' -r
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l transport -d 'How our own cache becomes a block device [default: ublk]' -r -f -a "ublk\t'A ublk device'
nbd\t'The kernel\'s NBD client on a Unix socket; the only way on kernels before 6.5'"
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l guest -d 'Run in a virtual machine with modelled devices; the default where no devices are named'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l full -d 'Run everything, without a limit of time, in place of the quick set'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -s y -l yes -d 'Do not ask before the devices are overwritten'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -l reverse -d 'Begin with the last system in place of the first'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -s V -l version -d 'Print version'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "run" -d 'Measure one workload'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "suite" -d 'Measure the project\'s own goals'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "hotpath" -d 'Count the instructions of the hot path'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "model-disk" -d 'Serve a modelled device over NBD, in real time'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "report" -d 'Show a recorded comparison again'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "compare-agent" -d 'The measuring side of a comparison, in the guest'
complete -c wb-bench -n "__fish_wb_bench_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l cache -d 'Run on the engine in process, with this cache device or file. It is formatted anew' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l backing -d 'The backing device or file of --cache. Its content is lost' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l nbd-uri -d 'Run on this NBD server' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l device -d 'Run on this block device' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l bs -d 'Bytes per operation' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l iodepth -d 'Operations in flight, per job' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l numjobs -d 'Jobs side by side' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l threads -d 'Threads over which the jobs are spread' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l rwmixread -d 'Share of reads in percent; left out, 50 for randrw and none for zipf' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l fsync -d 'Flush after every N writes; 0: never. `sync` flushes after each' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l size -d 'Bytes of the working set; left out, as much as the target allows' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l runtime -d 'How long to measure' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l ramp-time -d 'How long to warm up before' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l repeat -d 'Repetitions, of which the median is shown' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l engine -d 'What makes the load' -r -f -a "builtin\t'wb-bench itself'
fio\t'fio, as an outside check'"
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l no-verify-reads -d 'Serve reads of the cache without checking their checksums'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -s y -l yes -d 'Do not ask before data is overwritten'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l dir -d 'Directory on the device that is measured; files are made there, and removed' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l rows -d 'Rows of the table, by number; all if left out' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l size -d 'Bytes of the cache file' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l repeat -d 'Repetitions, of which the median is shown' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l runtime -d 'How long each pass is' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l programs -d 'Folder of wb-daemon; left out, that of wb-bench' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand suite" -s h -l help -d 'Print help'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l counts -d 'Compare with the counts in this file: more than 5 % above is an error' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l child -d 'Run one operation, uncounted: what runs under callgrind' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l operations -d 'How often --child runs it' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l update -d 'Keep the counts in the file of --counts'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand hotpath" -s h -l help -d 'Print help'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l model -d 'What to model: sata-ssd, nvme-plp, hdd, network, or none (takes no time)' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l size -d 'Bytes of the device' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l socket -d 'Unix socket to listen on, for its owner only' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l dilation -d 'How many times slower than its original it is' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l image -d 'Sparse file that holds the data; left out, memory' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l sector -d 'Logical sector, 512 or 4096' -r
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l stats -d 'Write what was done to it to this file, at the end and on SIGUSR1' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand model-disk" -s h -l help -d 'Print help'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l html -d 'Write the report with plots, one self-contained HTML file' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l picture -d 'Write one small picture of the main figures, an SVG' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l against -d 'Print the figures of RESULT beside those of another run, and whether they agree' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l markdown -d 'Print the tables as Markdown'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand report" -s h -l help -d 'Print help'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand compare-agent" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-bench -n "__fish_wb_bench_using_subcommand compare-agent" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand compare-agent" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand compare-agent" -s h -l help -d 'Print help'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "run" -d 'Measure one workload'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "suite" -d 'Measure the project\'s own goals'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "hotpath" -d 'Count the instructions of the hot path'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "model-disk" -d 'Serve a modelled device over NBD, in real time'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "report" -d 'Show a recorded comparison again'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "compare-agent" -d 'The measuring side of a comparison, in the guest'
complete -c wb-bench -n "__fish_wb_bench_using_subcommand help; and not __fish_seen_subcommand_from run suite hotpath model-disk report compare-agent help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
