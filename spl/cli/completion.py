"""`spl completion`: scripts that complete command lines in bash, zsh and fish, made from the command tree.

They are static: at TAB a shell runs nothing, asks no daemon and waits for no network.  Names of pairs come from
`<home>/run/pairs.list`, which the daemon keeps.  bash and zsh share `_spl_find`, in the part of the language that both
have; fish gets one `complete` line for each word.
"""

from argparse import Action, Namespace
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from ..core.errors import CODES
from ..core.version import PAIR_NAMES
from .command import CONTEXTS, Command, Group, Shell, actions_of, arg, gist

SHELLS: Final = ("bash", "zsh", "fish")
ANY: Final = "any"
FILE: Final = "file"
PAIR: Final = "pair"
CONTEXT: Final = "context"

_FILES: Final = frozenset({"FILE", "PATH", "DIR"})
_ALWAYS: Final = frozenset({"--home", "--context", "--output"})
"""Options that mean the same in every command, and before it."""


class Word(NamedTuple):
    """What may stand at one place: `kind` is one of the four above, or the words themselves."""

    kind: str
    repeats: bool = False


class Option(NamedTuple):
    """One option: its names, what follows it ("" for nothing), its help."""

    names: tuple[str, ...]
    value: str
    help: str


class CommandLine(NamedTuple):
    """What a command line may hold behind the words of a command."""

    summary: str
    options: tuple[Option, ...]
    places: tuple[Word, ...]


def lines_of(shell: Shell) -> tuple[dict[str, str], dict[str, CommandLine]]:
    """Return (first word -> its summary, words of a command -> its line)."""
    main = shell.load("cli.main")
    nouns = {noun: place.summary for noun, place in main.PLACES.items()}
    explained = [*nouns, *shell.load("cli.manual").TOPICS, *CODES]
    found: dict[str, CommandLine] = {}
    for noun, place in main.PLACES.items():
        for entry in shell.load(f"cli.{place.file}").TREE:
            if entry.name == noun:
                for command in entry.commands if isinstance(entry, Group) else (entry,):
                    found[command.name] = _line(command, explained)
    return nouns, found


def _line(command: Command, explained: Iterable[str]) -> CommandLine:
    actions = actions_of(command)
    options = tuple(
        Option(tuple(each.option_strings), "" if each.nargs == 0 else _kind(each), str(each.help or ""))
        for each in actions
        if each.option_strings
    )
    named = {"help": " ".join(explained), "context select": CONTEXT, "context remove": CONTEXT}
    places = tuple(
        Word(named.get(command.name) or _kind(each), each.nargs in ("*", "+"))
        for each in actions
        if not each.option_strings
    )
    return CommandLine(gist(command.concept).replace("`", ""), options, places)


def _kind(action: Action) -> str:
    if action.choices is not None:
        return " ".join(map(str, action.choices))
    name = str(action.metavar or action.dest)
    return PAIR if name.split(" ")[0] == "PAIR" else FILE if name in _FILES else ANY


def script_of(name: str, nouns: Mapping[str, str], lines: Mapping[str, CommandLine]) -> str:
    """Return the script of a shell."""
    if name == "fish":
        return _fish(nouns, lines)
    return (_BASH if name == "bash" else _ZSH).replace("@FIND@", _find(nouns, lines))


def _find(nouns: Mapping[str, str], lines: Mapping[str, CommandLine]) -> str:
    """Return the function that bash and zsh share: it sets spl_kind, and spl_words if the kind is "words"."""
    options, values, places = [], [], []
    for key, line in lines.items():
        names = " ".join(name for option in line.options for name in option.names)
        options.append(f"    '{key}') spl_words=({names}) ;;")
        values += [
            f"    {'|'.join(_quoted(f'{key} {name}') for name in option.names)}) spl_kind={_quoted(option.value)} ;;"
            for option in line.options
            if option.value and not _ALWAYS & {*option.names}
        ]
        for at, word in enumerate(line.places):
            pattern = f"'{key} '*" if word.repeats else f"'{key} {at}'"
            places.append(f"    {pattern}) spl_kind={_quoted(word.kind)} ;;")
    verbs = {noun: [key.partition(" ")[2] for key in lines if key.startswith(noun + " ")] for noun in nouns}
    groups = [f"    {noun}) spl_words=({' '.join(found)}) ;;" for noun, found in verbs.items() if found]
    text = _SHARED
    for mark, rows in (("OPTIONS", options), ("VALUES", values), ("PLACES", places), ("VERBS", groups)):
        text = text.replace(f"@{mark}@", "\n".join(rows))
    return text.replace("@NOUNS@", " ".join(nouns)).replace("@NAMES@", PAIR_NAMES).replace("@CONTEXTS@", CONTEXTS)


def _fish(nouns: Mapping[str, str], lines: Mapping[str, CommandLine]) -> str:
    """Return the script of fish: one function that prints candidates, each with its summary behind a tab."""
    verbs: dict[str, list[str]] = {}
    options, values, places = [], [], []
    for key, line in lines.items():
        noun, _, verb = key.partition(" ")
        if verb:
            verbs.setdefault(noun, []).append(f"{verb} {_fish_quoted(line.summary)}")
        named = [f"{name} {_fish_quoted(option.help)}" for option in line.options for name in option.names]
        options.append(f"    case '{key}'\n      printf '%s\\t%s\\n' {' '.join(named)}")
        values += [
            f"    case {' '.join(_fish_quoted(f'{key} {name}') for name in option.names)}\n"
            f"      set -g __spl_kind {_fish_quoted(option.value)}"
            for option in line.options
            if option.value and not _ALWAYS & {*option.names}
        ]
        for at, word in enumerate(line.places):
            pattern = f"{key} {'*' if word.repeats else at}"
            places.append(f"    case '{pattern}'\n      set -g __spl_kind {_fish_quoted(word.kind)}")
    groups = [f"    case {noun}\n      printf '%s\\t%s\\n' {' '.join(found)}" for noun, found in verbs.items()]
    first = " ".join(f"{noun} {_fish_quoted(summary)}" for noun, summary in nouns.items())
    text = _FISH.replace("@NOUNS@", first).replace("@GROUPS@", " ".join(verbs)).replace("@NAMES@", PAIR_NAMES)
    text = text.replace("@CONTEXTS@", CONTEXTS)
    for mark, rows in (("OPTIONS", options), ("VALUES", values), ("PLACES", places), ("VERBS", groups)):
        text = text.replace(f"@{mark}@", "\n".join(rows))
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"


_SHARED: Final = """\
# Looks at the words before the cursor: sets spl_kind to words, pair, file or any, and for words spl_words.
_spl_find() {
  local word noun= key= value= count=0
  spl_words=() spl_kind=any spl_home=${SYNCROPEL_HOME:-$HOME/.syncro}
  local current=$1
  shift
  for word in "$@"; do
    if [[ $word == = ]]; then
      continue
    elif [[ -n $value ]]; then
      [[ $word == "~/"* ]] && word=$HOME/${word#"~/"}
      [[ $value == home ]] && spl_home=$word
      value=
    elif [[ $word == -* ]]; then
      _spl_value "$key $word"
      value=$spl_kind
    elif [[ -z $noun ]]; then
      noun=$word key=$word
    elif [[ $key == "$noun" ]] && _spl_verbs "$noun"; then
      key="$noun $word"
    else
      count=$((count + 1))
    fi
  done
  spl_words=() spl_kind=any
  if [[ $current == = ]]; then
    return
  elif [[ -n $value ]]; then
    [[ $value == home ]] && value=file
    spl_kind=$value
  elif [[ -z $noun ]]; then
    spl_kind=words spl_words=(@NOUNS@)
  elif [[ $key == "$noun" ]] && _spl_verbs "$noun"; then
    spl_kind=words
  elif [[ $current == -* ]]; then
    spl_kind=words
    _spl_options "$key"
  else
    _spl_place "$key $count"
  fi
  case $spl_kind in
    pair)
      spl_kind=words
      word=$spl_home/@NAMES@
      if [[ -r $word ]]; then
        while read -r word; do spl_words+=("$word"); done < "$word"
      fi
      ;;
    context)
      spl_kind=words
      word=${XDG_CONFIG_HOME:-$HOME/.config}/@CONTEXTS@
      if [[ -r $word ]]; then
        while IFS= read -r word; do
          [[ $word == '    "'*'": {' ]] || continue
          word=${word%'"'*}
          spl_words+=("${word:5}")
        done < "$word"
      fi
      ;;
    words | file | any) ;;
    *)
      word=$spl_kind spl_kind=words
      while [[ -n $word ]]; do
        spl_words+=("${word%% *}")
        [[ $word == *" "* ]] && word=${word#* } || word=
      done
      ;;
  esac
}

_spl_verbs() {
  case $1 in
@VERBS@
    *) return 1 ;;
  esac
}

_spl_options() {
  case $1 in
@OPTIONS@
  esac
}

_spl_value() {
  spl_kind=
  case $1 in
    *' -o' | *' --output') spl_kind='table wide json jsonl' ;;
    *' --home') spl_kind=home ;;
    *' --context') spl_kind=context ;;
@VALUES@
  esac
}

_spl_place() {
  spl_kind=any
  case $1 in
@PLACES@
  esac
}
"""

_BASH: Final = """\
# Completion of spl in bash: source <(spl completion bash), or save it as a file of bash-completion.
@FIND@
_spl() {
  local spl_kind spl_home word
  local -a spl_words
  COMPREPLY=()
  _spl_find "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[@]:1:COMP_CWORD-1}"
  if [[ $spl_kind == file ]]; then
    compopt -o default
    return
  fi
  for word in "${spl_words[@]}"; do
    [[ $word == "${COMP_WORDS[COMP_CWORD]}"* ]] && COMPREPLY+=("$word")
  done
  return 0
}
complete -F _spl spl
"""

_ZSH: Final = """\
#compdef spl
# Completion of spl in zsh: source <(spl completion zsh) after compinit, or save it as _spl in a folder of fpath.
@FIND@
_spl() {
  local spl_kind spl_home
  local -a spl_words
  local MATCH MBEGIN MEND
  local -a match mbegin mend
  if [[ $LBUFFER =~ '(^|[ ;&|])SYNCROPEL_HOME=([^ ]+) +spl ' ]]; then
    local SYNCROPEL_HOME=${match[2]}
    [[ $SYNCROPEL_HOME == "~/"* ]] && SYNCROPEL_HOME=$HOME/${SYNCROPEL_HOME#"~/"}
  fi
  _spl_find "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}"
  if [[ $spl_kind == file ]]; then
    _files
  else
    compadd -- "${(@)spl_words}"
  fi
}
if [[ ${funcstack[1]} == _spl ]]; then
  _spl "$@"
else
  compdef _spl spl
fi
"""

_FISH: Final = """\
# Completion of spl in fish: spl completion fish > ~/.config/fish/completions/spl.fish
function __spl_complete
  set -l key
  set -l noun
  set -l value
  set -l count 0
  set -l home $HOME/.syncro
  set -q SYNCROPEL_HOME; and set home $SYNCROPEL_HOME
  set -l words (commandline -opc)
  while string match -q -- '*=*' "$words[1]"
    string match -q -- 'SYNCROPEL_HOME=*' "$words[1]"
    and set home (string replace -- 'SYNCROPEL_HOME=' '' "$words[1]" | string replace -r '^~(?=/)' $HOME)
    set -e words[1]
  end
  set -e words[1]
  for word in $words
    if test -n "$value"
      test "$value" = home; and set home $word
      set value ''
    else if string match -q -- '-*' $word
      __spl_value "$key $word"
      set value $__spl_kind
    else if test -z "$noun"
      set noun $word
      set key $word
    else if test "$key" = "$noun"; and contains -- $noun @GROUPS@
      set key "$noun $word"
    else
      set count (math $count + 1)
    end
  end
  set -l current (commandline -ct)
  set -g __spl_kind any
  if test -n "$value"
    set -g __spl_kind $value
    test "$value" = home; and set -g __spl_kind file
  else if test -z "$noun"
    printf '%s\\t%s\\n' @NOUNS@
  else if test "$key" = "$noun"; and contains -- $noun @GROUPS@
    __spl_verbs $noun
  else if string match -q -- '-*' "$current"
    __spl_options $key
  else
    __spl_place "$key $count"
  end
  switch $__spl_kind
    case any
    case file
      __fish_complete_path "$current"
    case pair
      test -r $home/@NAMES@; or return
      while read -l name
        echo $name
      end < $home/@NAMES@
    case context
      set -l folder $HOME/.config
      set -q XDG_CONFIG_HOME; and set folder $XDG_CONFIG_HOME
      test -r $folder/@CONTEXTS@; or return
      string replace -rf '^    "(.*)": \\{$' '$1' < $folder/@CONTEXTS@
    case '*'
      string split ' ' -- $__spl_kind
  end
end
function __spl_verbs
  switch $argv[1]
@VERBS@
  end
end
function __spl_options
  switch $argv[1]
@OPTIONS@
  end
end
function __spl_value
  set -g __spl_kind ''
  switch $argv[1]
    case '* -o' '* --output'
      set -g __spl_kind 'table wide json jsonl'
    case '* --home'
      set -g __spl_kind home
    case '* --context'
      set -g __spl_kind context
@VALUES@
  end
end
function __spl_place
  set -g __spl_kind any
  switch $argv[1]
@PLACES@
  end
end
complete -c spl -f -a '(__spl_complete)'
"""


def _completion(args: Namespace, shell: Shell) -> int:
    shell.out.lines(script_of(args.shell, *lines_of(shell)).rstrip("\n"))
    return 0


TREE: Final = (
    Command(
        "completion",
        "Prints the script that completes commands, options, choices and names of pairs in a shell.\n"
        "The script is static: no process and no network at TAB. bash does not show it an assignment before the\n"
        "command (SYNCROPEL_HOME=DIR spl ...): there, names of pairs are those of DIR after --home DIR or an export.",
        "source <(spl completion bash)",
        _completion,
        (arg("shell", choices=SHELLS, help="bash, zsh or fish"),),
        result=False,
        whose="nobody",
    ),
)
