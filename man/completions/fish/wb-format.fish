complete -c wb-format -l size -d 'Size of the file to create. A block device is always used as a whole: make a partition of the size wanted' -r
complete -c wb-format -l segment-size -d 'Unit of reuse of the log: a power of two, 64KiB to 64MiB' -r
complete -c wb-format -l label -d 'A label for people, at most 64 bytes' -r
complete -c wb-format -l discard-dirty -d 'The cache with this UUID may be overwritten although it holds dirty data' -r
complete -c wb-format -l config -d 'Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml' -r -F
complete -c wb-format -l force -d 'Overwrite a known signature. Never overrides "in use" or "mounted"'
complete -c wb-format -l json -d 'Print one JSON document on stdout in place of text for people'
complete -c wb-format -s v -l verbose -d 'Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like `wb_core::log=trace,info` and has precedence'
complete -c wb-format -s h -l help -d 'Print help (see more with \'--help\')'
complete -c wb-format -s V -l version -d 'Print version'
