# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_wb_daemon_global_optspecs
    string join \n json v/verbose config= h/help V/version
end

function __fish_wb_daemon_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_wb_daemon_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_wb_daemon_using_subcommand
    set -l cmd (__fish_wb_daemon_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -s V -l version -d 'Print version'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "run" -d 'Attach a backing device to a cache and serve it'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "status" -d 'Show state, dirty data, hit ratios, throughput, write-back and errors'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "drain" -d 'Write all dirty data to the backing device'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "detach" -d 'Drain, stop serving, and forget the backing device'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "stop" -d 'Stop the daemon cleanly; dirty data stays in the cache'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "upgrade" -d 'Change to another version of wb-daemon without taking a block device away'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "set" -d 'Change a setting of the running daemon'
complete -c wb-daemon -n "__fish_wb_daemon_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l cache -d 'The cache device or file' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l backing -d 'The backing device or file' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l name -d 'Name of the cache; selects a section of the config file, names sockets and the NBD export' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l nbd -d 'Serve NBD here: unix:PATH or HOST:PORT. May be given several times' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l ublk -d 'Serve a block device /dev/ublkbID; without ID any free number. Needs root and the module ublk_drv of Linux 6.5 or later' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l tail-dir -d 'Directory of the RAM tail, which keeps acknowledged writes when the daemon dies, on a tmpfs' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l control -d 'Path of the control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l read-only -d 'Refuse writes of clients'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l accept-loss -d 'Start although the RAM tail of a daemon that died cannot be found. Writes that it acknowledged and did not flush are lost'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand status" -s h -l help -d 'Print help'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -l no-wait -d 'Begin the work and return at once'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -l no-wait -d 'Begin the work and return at once'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l timeout -d 'Stop unclean if it takes longer than this, such as 90s or 5min; the next start recovers' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l drain -d 'Write all dirty data to the backing device first'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l force -d 'Take a ublk device away although it is mounted or open: its users get I/O errors'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand stop" -s h -l help -d 'Print help'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -l program -d 'The wb-daemon to change to' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -l control -d 'Path of the daemon\'s control socket' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -l name -d 'Name of the daemon\'s cache' -r
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "run" -d 'Attach a backing device to a cache and serve it'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "status" -d 'Show state, dirty data, hit ratios, throughput, write-back and errors'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "drain" -d 'Write all dirty data to the backing device'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "detach" -d 'Drain, stop serving, and forget the backing device'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "stop" -d 'Stop the daemon cleanly; dirty data stays in the cache'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "upgrade" -d 'Change to another version of wb-daemon without taking a block device away'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "set" -d 'Change a setting of the running daemon'
complete -c wb-daemon -n "__fish_wb_daemon_using_subcommand help; and not __fish_seen_subcommand_from run status drain detach stop upgrade set help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
