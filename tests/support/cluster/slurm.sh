#!/bin/bash
# A real SLURM of two nodes on this one machine, for tests: its own munged, slurmctld and two
# slurmd, with all their files in one folder. Nothing of the system is touched, and neither
# systemd nor a database is needed, only Debian's packages slurm-wlm and munge.
#
#   tests/cluster/slurm.sh start DIR     start what does not run, return when both nodes are ready
#   tests/cluster/slurm.sh status DIR    print the variables to export; fails if a daemon is down
#   tests/cluster/slurm.sh stop DIR      cancel all jobs, stop what `start` started; DIR remains
#
# Each node says that it has two CPUs, two GPUs and plenty of memory, whatever the machine has;
# memory is not counted. The first is called like the machine, so that its name resolves; the
# second has "-2" behind it. Jobs run as whoever started the nodes, root or not. SLURM looks for
# time limits, and for signals before them, every 30 seconds; a requeued job starts after six.
set -euo pipefail

PATH=$PATH:/usr/sbin # Debian's place for daemons, which only root has in its PATH
readonly WAIT_S=${SLURM_TEST_WAIT_S:-60} # for both nodes to be ready; and for a daemon to end

fail() {
    echo "error: $*" >&2
    exit 1
}

# tails: the ends of all logs, on standard error.
tails() {
    local log
    for log in "$dir"/log/*; do
        [[ -s $log ]] || continue
        echo "--- $log" >&2
        tail -n 15 "$log" >&2
    done
}

# pid_of DAEMON: the process of that name that this folder's pid file names and that still is it.
# Every daemon has a path of the folder among its arguments.
pid_of() {
    local pid
    pid=$(cat "$dir/run/$1.pid" 2>/dev/null) && [[ -n $pid ]] || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$dir/" || return 1
    echo "$pid"
}

# A port on which nothing listens, below those that the kernel gives to outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((10000 + RANDOM % 10000))
        [[ $taken == *" $port "* ]] && continue
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
        taken+="$port "
        return
    done
    fail "found no free port between 10000 and 20000"
}

configure() {
    local user host taken=' ' ports=()
    user=$(id -un)
    host=$(hostname -s)
    for _ in 1 2 3; do
        free_port
        ports+=("${taken: -6:5}")
    done
    if [[ ! -s $dir/munge.key ]]; then
        (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    fi
    cat >"$SLURM_CONF" <<-END
	ClusterName=test
	SlurmctldHost=$host(127.0.0.1)
	SlurmctldPort=${ports[0]}
	SlurmUser=$user
	SlurmdUser=$user
	AuthType=auth/munge
	CredType=cred/munge
	# A requeued job waits for as long as a credential lives: two minutes by default.
	AuthInfo=socket=$dir/run/munge,cred_expire=5

	StateSaveLocation=$dir/state
	SlurmdSpoolDir=$dir/spool/%n
	SlurmctldPidFile=$dir/run/slurmctld.pid
	SlurmdPidFile=$dir/run/%n.pid
	SlurmctldLogFile=$dir/log/slurmctld.log
	SlurmdLogFile=$dir/log/%n.log

	# Processes are followed through /proc, because a container may have no cgroups to give.
	ProctrackType=proctrack/linuxproc
	TaskPlugin=task/none
	JobAcctGatherType=jobacct_gather/none
	AccountingStorageType=accounting_storage/none
	JobCompType=jobcomp/none
	MailProg=/bin/true
	MpiDefault=none
	SwitchType=switch/none

	SelectType=select/cons_tres
	SelectTypeParameters=CR_CPU
	SlurmdParameters=config_overrides
	GresTypes=gpu
	JobRequeue=1
	MaxArraySize=1001
	# Quick instead of considerate. Finished jobs stay known for an hour.
	SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
	KillWait=5
	MinJobAge=3600
	ReturnToService=2

	NodeName=DEFAULT CPUs=2 RealMemory=1000000 Gres=gpu:2
	NodeName=$node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]}
	NodeName=$node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]}
	PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
	END
    # SLURM wants a device behind each GPU, any device.
    printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$dir/gres.conf"
}

# launch DAEMON COMMAND...: start it unless it runs. It keeps neither our output nor our lock.
launch() {
    local name=$1
    shift
    if pid_of "$name" >/dev/null; then
        return
    fi
    rm -f "$dir/run/$name.pid"
    if ! "$@" </dev/null >>"$dir/log/$name.out" 2>&1 9>&-; then
        tails
        fail "$name did not start; the ends of its logs are above"
    fi
}

# How many nodes answer and take jobs, or are busy with some.
ready_nodes() {
    sinfo --noheader --Node --responding --states=idle,mixed,allocated --format=%N \
        2>>"$dir/log/sinfo.out" | sort -u | wc -l
}

start() {
    local daemon running=0
    for daemon in munged slurmctld slurmd; do
        command -v "$daemon" >/dev/null ||
            fail "$daemon is not installed: apt install slurm-wlm munge"
    done
    mkdir -p "$dir"/{log,run,state} "$dir/spool/"{"$node1","$node2"}
    exec 9>"$dir/lock"
    flock 9
    for daemon in "${daemons[@]}"; do
        pid_of "$daemon" >/dev/null && running=$((running + 1))
    done
    ((running > 0)) || configure
    # --force: a temporary folder is closed to other users, which munged else takes for a mistake.
    launch munged munged --force --socket="$dir/run/munge" --key-file="$dir/munge.key" \
        --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" \
        --seed-file="$dir/run/munged.seed"
    launch slurmctld slurmctld -f "$SLURM_CONF"
    launch "$node1" slurmd -N "$node1" -f "$SLURM_CONF"
    launch "$node2" slurmd -N "$node2" -f "$SLURM_CONF"
    for ((i = 0; i < WAIT_S * 5; i++)); do
        (($(ready_nodes) < 2)) || return 0
        sleep 0.2
    done
    sinfo --Node --long >&2 || true
    tails
    fail "the two nodes were not ready after $WAIT_S s; the ends of the logs are above"
}

status() {
    local daemon
    for daemon in "${daemons[@]}"; do
        pid_of "$daemon" >/dev/null ||
            fail "$daemon does not run: tests/cluster/slurm.sh start $dir"
    done
    printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
}

# finish DAEMON: ask it to end, then make it.
finish() {
    local pid
    pid=$(pid_of "$1") || return 0
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < WAIT_S * 10; i++)); do
        pid_of "$1" >/dev/null || return 0
        sleep 0.1
    done
    echo "$1 did not end in $WAIT_S s and is killed" >&2
    kill -KILL "$pid" 2>/dev/null || true
}

stop() {
    local daemon jobs
    [[ -d $dir/run ]] || return 0
    exec 9>"$dir/lock"
    flock 9
    # Jobs outlive the daemons, so they go first; SLURM kills what does not end by itself.
    if pid_of slurmctld >/dev/null; then
        for ((i = 0; i < 100; i++)); do
            mapfile -t jobs < <(timeout 10 squeue --noheader --format=%A 2>/dev/null | sort -u)
            ((${#jobs[@]} > 0)) || break
            timeout 10 scancel "${jobs[@]}" 2>/dev/null || true
            sleep 0.2
        done
    fi
    for daemon in slurmctld "$node1" "$node2" munged; do
        finish "$daemon"
    done
}

[[ $# -eq 2 && $1 =~ ^(start|stop|status)$ ]] ||
    fail "usage: tests/cluster/slurm.sh start|stop|status DIR"
dir=$(realpath -m -- "$2")
[[ $dir =~ ^[A-Za-z0-9/._+-]+$ ]] || fail "SLURM takes no such characters in a path: $dir"
((${#dir} <= 60)) || fail "a socket's path may not be long; take a shorter folder than $dir"
node1=$(hostname -s)
node2=$node1-2
daemons=(munged slurmctld "$node1" "$node2")
readonly dir node1 node2 daemons
export SLURM_CONF=$dir/slurm.conf
"$1"
