#!/usr/bin/env bash
# Run one job of a study, and append its exit status to its log:  run_job.sh SLOTS STEM COMMAND ...   (see run_job.py)
set -u
status=0 stopped=
trap 'stopped=1' INT TERM HUP # outlive the signal that the command gets too
python "$(dirname "$0")/run_job.py" "$@" || status=$?
echo "exit status $status" >>"$2.log"

# A Slurm job that is asked to stop, and is not cancelled, is near the end of its time: its command has saved its state,
# and resumes when the job has waited in the queue again.
if [ "$1" = 0 ] && [ -n "$stopped" ] && [ "$status" != 0 ] &&
    [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
exit "$status"
