# shellcheck shell=bash
# Sourced by the launchers: messages, checks of values, and dry runs.

DRY_RUN=

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# help [SCRIPT]: the comment at its head, the calling script's by default.
help() { sed -n '2,/^[^#]/{/^#SBATCH/d; /^#/s/^# \{0,1\}//p}' "${1:-$0}"; }

# needs OPTION [VALUE...]
needs() { (($# > 1)) || die "$1 needs a value"; }

# check NAME VALUE PATTERN EXAMPLE: the whole value must match the extended regular expression.
check() {
  [[ -n $2 ]] || die "$1 is missing, for example $4"
  [[ $2 =~ ^($3)$ ]] || die "$1 '$2' is not valid, for example $4"
}

# The words as one line that a shell reads back as the same words.
quoted() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Run a command, or only print it under --dry-run.
call() {
  if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi
}

# What follows -- must name an existing configuration; the rest is for train to judge.
check_training_arguments() {
  local previous='' word config=
  for word; do
    [[ $previous == --config ]] && config=$word
    [[ $word == --config=* ]] && config=${word#--config=}
    [[ $word == *[[:cntrl:]]* ]] && die "a training argument holds a control character: ${word@Q}"
    previous=$word
  done
  [[ $config ]] || die "give the training arguments after --, for example -- --config configs/quickstart.yaml"
  [[ -f $config ]] || die "--config '$config': no such file in $PWD"
}

# A bucket, and a folder in it.
check_bucket() { check --bucket "$1" '[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' my-bucket; }
check_output() { check --output "$1" '[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*' runs/first; }
