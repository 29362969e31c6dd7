# Completion of larder: list restore scan serve
# restore: restore a backup; scan: barcode, check digit, items while the network is down; list: table, columns, wide
_larder() {
    local words="list restore scan serve"
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _larder larder
