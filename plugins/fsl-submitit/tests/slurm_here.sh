#!/bin/sh
# Slurm on this machine alone: one node, one partition, no accounts. To try the launcher out.
#
#   apt-get install slurm-wlm munge                  # Debian and Ubuntu
#   sh slurm_here.sh start FOLDER [CORES]            # as root, with its files in FOLDER
#   export SLURM_CONF=FOLDER/slurm.conf              # by which sbatch and the others find it
#   sh slurm_here.sh stop FOLDER
#
# SLURM_HERE_PORT and the port after it are used (6827).
set -e

what=$1
folder=$2
cores=${3:-$(nproc)}
node=$(hostname -s)
port=${SLURM_HERE_PORT:-6827}
if [ -z "$folder" ]; then
    echo "usage: slurm_here.sh start|stop FOLDER [CORES]" >&2
    exit 2
fi
export SLURM_CONF="$folder/slurm.conf"

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -f "$folder/$daemon.pid" ]; then
            kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
        fi
    done
}

configure() {
    mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
    chmod 755 "$folder" "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 2>/dev/null
    chmod 600 "$folder/munge/key"
    cat > "$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cores RealMemory=8000 State=UNKNOWN
PartitionName=here Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
}

case $what in
start)
    configure
    munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" \
        --seed-file="$folder/munge/seed"
    slurmctld
    slurmd
    left=30
    until sinfo --noheader --states=idle --format=%T 2>/dev/null | grep -q idle; do
        left=$((left - 1))
        if [ "$left" -eq 0 ]; then
            echo "no idle node after 30 s: see the logs in $folder" >&2
            exit 1
        fi
        sleep 1
    done
    ;;
stop) stop ;;
*)
    echo "$what: start or stop" >&2
    exit 2
    ;;
esac
