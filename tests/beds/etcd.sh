#!/usr/bin/env bash
# An etcd cluster for tests: members on 127.0.0.1, all below one folder, without systemd.
#
#   etcd.sh install                  the packages (Debian 12)
#   etcd.sh up FOLDER [MEMBERS]      starts so many members, 3 unless given; does nothing where they are up
#   etcd.sh endpoints FOLDER         prints their client addresses, one a line
#   etcd.sh leader FOLDER            prints the number of the member that leads
#   etcd.sh start FOLDER MEMBER      starts a member that was killed or stopped by TERM
#   etcd.sh signal FOLDER MEMBER SIG sends a signal: KILL, STOP, CONT or TERM
#   etcd.sh cut FOLDER MEMBER        cuts a member off from everything, with NETWORKS
#   etcd.sh mend FOLDER MEMBER       takes that back
#   etcd.sh ctl FOLDER ARGUMENTS...  runs etcdctl on all members
#   etcd.sh down FOLDER              kills the members and removes the folder
#
# In the environment: TLS=1 for certificates (FOLDER/ca.pem, FOLDER/client.pem, FOLDER/client.key, which members demand), QUOTA for
# another quota in bytes, PORTS for two ports a member, NETWORKS=1 for a network namespace for each member, all on one bridge.
set -euo pipefail

command=${1:?which command}
fail() { echo "etcd.sh: $*" >&2; exit 1; }

if [ "$command" = install ]; then
  export DEBIAN_FRONTEND=noninteractive
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
  fi
  apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends etcd-server etcd-client faketime openssl iproute2 >/dev/null
  exit 0
fi

folder=${2:?which folder}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# Below the ports that the kernel gives to connections: one of those could be in use when the member starts.
free_ports() { # how many
  python3 - "$1" <<'PYTHON'
import random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    one = socket.socket()
    try:
        one.bind(("127.0.0.1", random.randrange(10000, 32000)))
        held.append(one)
    except OSError:
        one.close()
print(*[one.getsockname()[1] for one in held])
PYTHON
}

certificates() { # addresses
  local names="DNS:localhost,IP:127.0.0.1" address
  for address in "$@"; do names="$names,IP:$address"; done
  cd "$folder"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=test authority" \
    -keyout ca.key -out ca.pem 2>/dev/null
  local name
  for name in member client; do
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" -keyout "$name.key" -out "$name.csr" 2>/dev/null
    openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out "$name.pem" \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") 2>/dev/null
  done
  cd - >/dev/null
}

# A bridge, and for each member a namespace with an address on it. Their names are those of the bridge with the number of the member.
make_networks() { # how many
  local bridge network member
  network=10.$((RANDOM % 200 + 20)).$((RANDOM % 250))
  bridge=sg$(printf '%04x%02x' $((RANDOM % 65536)) $(($$ % 256)))
  echo "$bridge" >"$folder/bridge"
  ip link add "$bridge" type bridge
  ip address add "$network.1/24" dev "$bridge"
  ip link set "$bridge" up
  for ((member = 0; member < $1; member++)); do
    ip netns add "$bridge-$member"
    ip link add "$bridge-$member" type veth peer name eth0 netns "$bridge-$member"
    ip link set "$bridge-$member" master "$bridge" up
    ip -n "$bridge-$member" address add "$network.$((member + 10))/24" dev eth0
    ip -n "$bridge-$member" link set eth0 up
    ip -n "$bridge-$member" link set lo up
    addresses+=("$network.$((member + 10))")
    namespaces+=("$bridge-$member")
  done
}

remove_networks() {
  [ -e "$folder/bridge" ] || return 0
  local bridge namespace
  bridge=$(cat "$folder/bridge")
  for namespace in $(ip netns list | awk '{ print $1 }' | grep "^$bridge-" || true); do
    ip netns delete "$namespace"
  done
  ip link delete "$bridge" 2>/dev/null || true
}

start() { # member
  local member=$1 arguments
  mapfile -t arguments <"$folder/$member.arguments"
  nohup "${arguments[@]}" >>"$folder/$member.log" 2>&1 </dev/null &
  echo $! >"$folder/$member.pid"
}

endpoints() { cat "$folder/endpoints"; }

ctl() {
  local options=(--endpoints="$(endpoints | paste -sd,)" --command-timeout="${CTL_TIMEOUT:-5s}")
  [ ! -e "$folder/client.pem" ] || options+=(--cacert="$folder/ca.pem" --cert="$folder/client.pem" --key="$folder/client.key")
  ETCDCTL_API=3 etcdctl "${options[@]}" "$@"
}

pid_of() { # member
  [ -e "$folder/$1.pid" ] || fail "no member $1"
  cat "$folder/$1.pid"
}

case $command in
up)
  members=${3:-3}
  if [ ! -e "$folder/endpoints" ]; then
    read -r -a ports <<<"${PORTS:-$(free_ports $((members * 2)))}"
    addresses=() namespaces=()
    [ -z "${NETWORKS:-}" ] || make_networks "$members"
    scheme=http tls=()
    if [ -n "${TLS:-}" ]; then
      certificates "${addresses[@]}"
      scheme=https
      tls=(--cert-file="$folder/member.pem" --key-file="$folder/member.key" --client-cert-auth --trusted-ca-file="$folder/ca.pem"
        --peer-cert-file="$folder/member.pem" --peer-key-file="$folder/member.key" --peer-client-cert-auth --peer-trusted-ca-file="$folder/ca.pem")
    fi
    cluster=
    for ((member = 0; member < members; member++)); do
      cluster="$cluster,m$member=$scheme://${addresses[$member]:-127.0.0.1}:${ports[$((members + member))]}"
    done
    for ((member = 0; member < members; member++)); do
      address=${addresses[$member]:-127.0.0.1}
      client=$scheme://$address:${ports[$member]} peer=$scheme://$address:${ports[$((members + member))]}
      arguments=(etcd --name "m$member" --data-dir "$folder/m$member" --log-outputs stderr --logger zap
        --listen-client-urls "$client" --advertise-client-urls "$client" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer"
        --initial-cluster "${cluster#,}" --initial-cluster-token "$(basename "$folder")" --initial-cluster-state new
        --auto-compaction-mode periodic --auto-compaction-retention 5m --quota-backend-bytes "${QUOTA:-268435456}" "${tls[@]}")
      [ -z "${namespaces[$member]:-}" ] || arguments=(ip netns exec "${namespaces[$member]}" "${arguments[@]}")
      printf '%s\n' "${arguments[@]}" >"$folder/$member.arguments"
      echo "$client" >>"$folder/endpoints.new"
    done
    mv "$folder/endpoints.new" "$folder/endpoints"
    for ((member = 0; member < members; member++)); do start "$member"; done
  fi
  deadline=$((SECONDS + 30))
  while [ "$SECONDS" -lt "$deadline" ]; do
    if CTL_TIMEOUT=1s ctl endpoint health >/dev/null 2>&1; then exit 0; fi
    sleep 0.2
  done
  tail -n 5 "$folder"/*.log >&2
  fail "no healthy cluster after 30 s"
  ;;
endpoints) endpoints ;;
leader)
  # A member that is down makes the command fail, and the others are listed nevertheless.
  leader=$({ ctl endpoint status 2>/dev/null || true; } | awk -F', ' '$5 == "true" { print $1; exit }')
  [ -z "$leader" ] || { endpoints | awk -v leader="$leader" '$1 == leader { print NR - 1 }'; exit 0; }
  fail "no leader"
  ;;
start) start "${3:?which member}" ;;
cut) ip link set "$(cat "$folder/bridge")-${3:?which member}" nomaster ;;
mend) ip link set "$(cat "$folder/bridge")-${3:?which member}" master "$(cat "$folder/bridge")" ;;
signal) kill -s "${4:?which signal}" "$(pid_of "${3:?which member}")" ;;
ctl)
  shift 2
  ctl "$@"
  ;;
down)
  for file in "$folder"/*.pid; do
    [ ! -e "$file" ] || kill -KILL "$(cat "$file")" 2>/dev/null || true
  done
  remove_networks
  rm -rf "$folder"
  ;;
*) fail "no command $command" ;;
esac
