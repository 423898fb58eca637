#!/usr/bin/env bash
# The life cycle of a TPU slice: create, install, start, log, stop, watch, delete.
set -euo pipefail

usage() {
  cat <<'TEXT'
tpu/pod.sh COMMAND [ARGUMENTS]      (settings: tpu/pod.env, see tpu/pod.env.example)

  create                      request the slice (a queued resource), and wait until it is active
  install                     copy this checkout's last commit to all workers and install it
  start CONFIG [KEY=VALUE]... start the run on all workers; it outlives the connection
  log                         follow the first worker's log
  stop                        end the run; it saves a checkpoint first
  watch CONFIG [KEY=VALUE]... start; after each preemption create the slice again and resume
  status                      print the slice's state
  delete                      delete the slice

--dry-run before the command prints the commands and runs none. The checkpoints must outlive the
slice: run_dir is in a bucket (gs://...), or in a folder that is mounted on all workers.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=(PROJECT ZONE NAME TYPE RUNTIME SLICES KIND POLL_SECONDS)
for name in "${settings[@]}"; do # the environment takes precedence over the file
  [[ -v $name ]] && declare "given_$name=${!name}"
done
env_file=${POD_ENV:-$here/pod.env}
# shellcheck source=/dev/null
[[ -f $env_file ]] && source "$env_file"
for name in "${settings[@]}"; do
  given="given_$name"
  [[ -v $given ]] && declare "$name=${!given}"
done
: "${SLICES:=1}" "${KIND:=spot}" "${POLL_SECONDS:=30}" "${RUNTIME:=}"

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

need_settings() {
  for name in PROJECT ZONE NAME TYPE; do
    [[ -n ${!name:-} ]] || fail "$name is not set; see tpu/pod.env.example."
  done
  place=(--project "$PROJECT" --zone "$ZONE")
}

runtime() {
  if [[ $RUNTIME ]]; then
    echo "$RUNTIME"
    return
  fi
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "there is no runtime known for the type '$TYPE'; set RUNTIME." ;;
  esac
}

nodes() {
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
  fi
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  local image
  image=$(runtime)
  local ask=(gcloud compute tpus queued-resources create "$NAME" "${place[@]}"
    --accelerator-type "$TYPE" --runtime-version "$image")
  if ((SLICES == 1)); then
    ask+=(--node-id "$NAME")
  else
    ask+=(--node-count "$SLICES" --node-prefix "$NAME")
  fi
  case $KIND in
    spot) ask+=(--spot) ;;
    reserved) ask+=(--reserved) ;;
    on-demand) ;;
    *) fail "KIND is '$KIND', expected spot, on-demand or reserved." ;;
  esac
  run "${ask[@]}"
  [[ $dry_run ]] || wait_until_active
}

wait_until_active() {
  local now before=
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || echo "$(date +%T) $NAME: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | ABSENT) fail "$NAME is $now: delete it, and create it again." ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

# Runs a command line on the workers of every slice; $1 says which ("all" or "0").
on_workers() {
  local workers=$1 line=$2 node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker "$workers" --command "$line"
  done
}

install() {
  local archive node
  archive=$(mktemp -d)/spirit_jax.tar.gz
  git -C "$here/.." archive --format tar.gz --output "$archive" HEAD
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:spirit_jax.tar.gz" "${place[@]}" --worker all
  done
  on_workers all 'rm -rf spirit_jax && mkdir spirit_jax && tar xzf spirit_jax.tar.gz -C spirit_jax &&
    python3 -m venv venv && venv/bin/pip install -q -e "spirit_jax[tpu]"'
}

start() {
  (($#)) || fail "start needs a config, such as configs/7b-v5e-256.yaml."
  local quoted
  quoted=$(printf '%q ' "$@")
  # The run writes its own process id, which it keeps when bash becomes it by exec: the id of the
  # remote shell's background job would be that of a shell that waits, which passes no signal on.
  # setsid: the run outlives the connection. The line is one word, since a login shell may be dash.
  local line="cd spirit_jax && echo \$\$ > ../run.pid &&
    exec ../venv/bin/spirit-jax train --distributed --config $quoted"
  on_workers all "if $is_running; then echo 'a run is running: stop it first' >&2; exit 1; fi
    rm -f run.pid
    setsid nohup bash -c $(as_word "$line") > run.log 2>&1 < /dev/null &
    for tenth in 1 2 3 4 5 6 7 8 9 10; do test -s run.pid && exit 0; sleep 0.1; done
    echo 'the run did not start; see its log' >&2; exit 1"
}

# The test, on a worker, that run.pid names a run that is alive. After a restart of the machine the
# id may be that of another process, so the command is looked at too.
is_running='test -s run.pid && tr "\000" " " < /proc/"$(cat run.pid)"/cmdline 2>/dev/null | grep -q "spirit-jax train"'

# A text in quotes that every shell reads as it is.
as_word() {
  local quote="'\\''"
  printf "'%s'" "${1//\'/$quote}"
}

stop() {
  on_workers all "if $is_running; then kill -TERM \"\$(cat run.pid)\"; else echo 'no run is running'; fi"
}

watch() {
  (($#)) || fail "watch needs a config, such as configs/7b-v5e-256.yaml."
  local started=
  while true; do
    case $(state) in
      ACTIVE)
        if running; then
          started=yes
        elif [[ ! $started ]]; then
          install
          start "$@"
          started=yes
        elif [[ $(state) == ACTIVE ]]; then
          echo "$(date +%T) $NAME: the run has ended; see its log"
          return
        fi
        ;;
      ABSENT) create ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "$(date +%T) $NAME is lost; it is created again, and the run resumes from its checkpoint"
        delete
        started=
        ;;
      *) wait_until_active ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

# Whether the run's process is there on the first worker.
running() {
  local first
  first=$(nodes | head -n 1)
  gcloud compute tpus tpu-vm ssh "$first" "${place[@]}" --worker 0 \
    --command "$is_running" 2>/dev/null
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
}

follow() {
  local first
  first=$(nodes | head -n 1)
  run gcloud compute tpus tpu-vm ssh "$first" "${place[@]}" --worker 0 --command "tail -n 100 -F run.log"
}

command=${1:-}
(($#)) && shift
case $command in
  create | install | start | stop | watch | delete)
    need_settings
    "$command" "$@"
    ;;
  log)
    need_settings
    follow
    ;;
  status)
    need_settings
    state
    ;;
  -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
