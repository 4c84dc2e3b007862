# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_wb_dump_global_optspecs
    string join \n cache= json v/verbose config= h/help V/version
end

function __fish_wb_dump_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_wb_dump_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_wb_dump_using_subcommand
    set -l cmd (__fish_wb_dump_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c wb-dump -n "__fish_wb_dump_needs_command" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_needs_command" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_needs_command" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -s V -l version -d 'Print version'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "superblock" -d 'Both superblocks, the volumes, the geometry'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "anchor" -d 'Both anchors: epoch, tails, durable record, clean mark, counters'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "segment" -d 'One segment: its records, their entries and the state of each'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "record" -d 'One record: its header and entries'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "block" -d 'Every version of a block that is still in the log, with times'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "log" -d 'The records of the log, one line each, oldest first'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "summary" -d 'What the cache holds, in numbers'
complete -c wb-dump -n "__fish_wb_dump_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand superblock" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand superblock" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand superblock" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand superblock" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand superblock" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand anchor" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand anchor" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand anchor" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand anchor" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand anchor" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand segment" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand segment" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand segment" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand segment" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand segment" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand record" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand record" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand record" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand record" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand record" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand block" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand block" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand block" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand block" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand block" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -l from -d 'Begin with this record' -r
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -l count -d 'Show at most so many records' -r
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand log" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand summary" -l cache -d 'The cache device or file; left out, the only one of the config file' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand summary" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-dump -n "__fish_wb_dump_using_subcommand summary" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand summary" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand summary" -s h -l help -d 'Print help'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "superblock" -d 'Both superblocks, the volumes, the geometry'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "anchor" -d 'Both anchors: epoch, tails, durable record, clean mark, counters'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "segment" -d 'One segment: its records, their entries and the state of each'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "record" -d 'One record: its header and entries'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "block" -d 'Every version of a block that is still in the log, with times'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "log" -d 'The records of the log, one line each, oldest first'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "summary" -d 'What the cache holds, in numbers'
complete -c wb-dump -n "__fish_wb_dump_using_subcommand help; and not __fish_seen_subcommand_from superblock anchor segment record block log summary help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
