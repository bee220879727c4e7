# Shared by the tests of this directory: a server, and what a run must have reported.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ecoloop=${ECOLOOP:-$root/target/release/ecoloop}
directory=$(mktemp -d)
processes=()
namespaces=()
network=

cleanup() {
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    for name in "${namespaces[@]}"; do
        ip netns delete "$name" || true
        rm -rf "/etc/netns/$name"
    done
    if [ -n "$network" ]; then ip link delete "$bridge" || true; fi
    rm -rf "$directory"
}
trap cleanup EXIT

# Sets `port` to one that no connection of a load can take: it is outside the range of local ports.
choose_port() {
    port=$((20000 + RANDOM % 12000))
}

# Starts an echo server on the address in $1, and waits until it listens. What it is started with is in the other arguments.
serve() {
    local address=$1 log=$directory/server.log
    shift
    "$@" "$ecoloop" serve --lang en --log-connections none "$address" >"$log" &
    processes+=($!)
    # Its own words: another echo server may have the port.
    until grep -qs 'Waiting for connections' "$log"; do
        kill -0 "${processes[-1]}"
        sleep 0.1
    done
}

# Starts a server on a port of 127.0.0.1 or of the address in $1, and sets `server`. The other arguments are those of `serve`.
start_server() {
    local address=${1:-127.0.0.1}
    shift || true
    choose_port
    server=$address:$port
    serve "$server" "$@"
}

# Prints a time at which ranks without a barrier start: enough for their launcher on a busy machine.
later() {
    date -u -d '+8 seconds' +%FT%TZ
}

# Sets `network` to the first three numbers of a network, on a bridge of this machine.
make_network() {
    # A name and addresses that no other test has.
    local id=$((RANDOM % 200 + 20))
    bridge=eco$id
    ip link add "$bridge" type bridge
    network=10.213.$id
    ip address add "$network.254/24" dev "$bridge"
    ip link set "$bridge" up
}

# Sets `machine` to a namespace whose address in the network ends in $1.
add_machine() {
    machine=$bridge-$1
    ip netns add "$machine"
    namespaces+=("$machine")
    ip link add "$bridge.$1" type veth peer name eth0 netns "$machine"
    ip link set "$bridge.$1" master "$bridge" up
    ip -n "$machine" address add "$network.$1/24" dev eth0
    ip -n "$machine" link set eth0 up
    ip -n "$machine" link set lo up
}

# Fails unless the report in $1 is of a whole run of $2 ranks in which $3 messages were due and came back.
check() {
    python3 - "$@" <<'PYTHON'
import json, sys
name, ranks, due = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
report = json.load(open(name))
found = (report["ended"], len(report["run_id"].split("+")), report["messages"]["due"], report["messages"]["verified"])
expected = ("complete", ranks, due, due)
if found != expected:
    sys.exit(f"{name}: {found}, expected {expected}; errors {report['errors']}")
print(f"ok: {ranks} ranks, {due} messages")
PYTHON
}

# Fails unless the joined output in $1 is merged as `check` says, or refused because it is mixed. It may not be wrong.
check_joined() {
    local merged=$directory/merged-joined.json
    if "$ecoloop" merge -q --json "$merged" "$1" 2>"$directory/reason" || [ $? = 3 ]; then
        check "$merged" "$2" "$3"
    else
        grep "mixed output of several processes" "$directory/reason"
    fi
    rm -f "$merged"
}
