complete -c wb-check -l backup -d 'Where --repair saves the blocks it replaces; the default for a file is CACHE.backup beside it' -r -F
complete -c wb-check -l backing -d 'The backing device for --replay; left out, the one that the config file gives this cache' -r -F
complete -c wb-check -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-check -l repair -d 'Repair what is wrong, after showing the plan'
complete -c wb-check -s y -l yes -d 'Do not ask before the repair'
complete -c wb-check -l verify-data -d 'Verify the checksum of every block\'s payload, too'
complete -c wb-check -l replay -d 'Write all dirty data to the backing device'
complete -c wb-check -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-check -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-check -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-check -s V -l version -d 'Print version'
