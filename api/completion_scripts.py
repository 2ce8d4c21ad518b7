"""What shells are told so that they ask `storebus complete` for words.

Owns the three scripts. Refuses to know any command: all words come from `api.completion`.
"""

from __future__ import annotations

BASH = r'''# storebus completion for bash: eval "$(storebus completion bash)"
_storebus_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" several=--several
    # Where bash takes the words one by one it gets them without their help.
    [[ $COMP_TYPE == 37 || $COMP_TYPE == 42 ]] && several=--no-several
    local IFS=$'\n'
    COMPREPLY=($("${COMP_WORDS[0]}" complete bash "$several" -- "$line" 2>/dev/null))
}
complete -o nospace -o nosort -F _storebus_complete storebus 2>/dev/null || complete -o nospace -F _storebus_complete storebus
'''
ZSH = r'''#compdef storebus
# storebus completion for zsh: eval "$(storebus completion zsh)", after compinit
_storebus() {
    local line="${(j: :)${(@)words[1,CURRENT-1]}} ${words[CURRENT]}"
    local -a values shown open_values open_shown
    local value help
    while IFS=$'\t' read -r value help; do
        if [[ $value == *[=.] ]]; then
            open_values+=("$value"); open_shown+=("$value${help:+  -- $help}")
        else
            values+=("$value"); shown+=("$value${help:+  -- $help}")
        fi
    done < <("${words[1]}" complete zsh -- "$line" 2>/dev/null)
    (( $#open_values )) && compadd -l -S '' -d open_shown -a open_values
    (( $#values )) && compadd -l -d shown -a values
}
(( $+functions[compdef] )) && compdef _storebus storebus
'''
FISH = r'''# storebus completion for fish: storebus completion fish | source
complete -c storebus -f -a '(storebus complete fish -- (commandline -cp) 2>/dev/null)'
'''
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
"""By shell."""

__all__ = ["SCRIPTS"]
