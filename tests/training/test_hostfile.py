"""``deepspeed --hostfile``: two machines over ssh, both of them this one."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT, llama_config, metrics, random_shards

pytestmark = pytest.mark.slow

NEEDED = ("sshd", "ssh", "ssh-keygen", "pdsh")


@pytest.fixture
def ssh(tmp_path):
    """The environment in which pdsh reaches 127.0.0.1 and 127.0.0.2 by an sshd of this test's own.

    Without Debian's packages the test is skipped, or fails where GEM_DS_REQUIRE_CLUSTER is 1.
    """
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    for program in NEEDED:
        if not shutil.which(program, path=path):
            missing = f"{program} is not installed: apt install openssh-server pdsh"
            if os.environ.get("GEM_DS_REQUIRE_CLUSTER") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(make, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = f"""
        Port {port}
        ListenAddress 127.0.0.1
        ListenAddress 127.0.0.2
        HostKey {folder}/host
        AuthorizedKeysFile {folder}/user.pub
        PidFile {folder}/sshd.pid
        StrictModes no
        UsePAM no
        PasswordAuthentication no
    """
    (folder / "config").write_text(config)
    with contextlib.suppress(PermissionError):  # where root has started no sshd yet
        Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [shutil.which("sshd", path=path), "-D", "-e", "-f", folder / "config"],
        stderr=(folder / "log").open("w"),
    )
    options = f"-i {folder}/user -p {port} -o StrictHostKeyChecking=no"
    options += f" -o UserKnownHostsFile={folder}/known -o LogLevel=ERROR -F none"
    try:
        yield {**os.environ, "PDSH_SSH_ARGS_APPEND": options}
    finally:
        daemon.terminate()
        daemon.wait()


def test_two_machines_of_a_hostfile_train_together(ssh, tmp_path, tokenizer_dir):
    shards = random_shards(tmp_path / "shards", tokenizer_dir, n_rows=8)
    flags = ["--config", llama_config(tmp_path / "llama"), "--shards", shards]
    flags += ["--output", tmp_path / "run", "--steps", 2, "--rows-per-step", 4, "--alpha-start", 0]
    (tmp_path / "hostfile").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    # What the launcher does not hand on by itself stands in a file.
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        variables["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in variables.items()]
    (tmp_path / "environment").write_text("".join(lines))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, Path(sys.executable).with_name("deepspeed"), "--no_ssh_check"]
    launcher += ["--hostfile", tmp_path / "hostfile"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
    train = [ROOT / "launch/train.py", "--deepspeed", ROOT / "ds_configs/zero3.json", *flags]
    done = subprocess.run(
        [str(part) for part in [*launcher, *train]],
        env={**ssh, **variables, "DS_ENV_FILE": str(tmp_path / "environment")},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len(metrics(tmp_path / "run")) == 2
    assert "127.0.0.1: " in done.stdout + done.stderr
    assert "127.0.0.2: " in done.stdout + done.stderr
    (start,) = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert '"world_size": 2' in start
