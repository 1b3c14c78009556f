"""The whole daemon as a process: it captions, takes new settings, tells systemd, and stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.captiond.daemon import host_name
from tests.imports import ROOT
from tests.peers.daemon import DEMO_BUNDLE, DEMO_VIDEO, RunningDaemon

VIDEO = {"name": "film", "uri": str(DEMO_VIDEO), "loop": True}
TRUTH = {
    line["frame"]: line
    for line in map(json.loads, (ROOT / "runtime" / "demo" / "demo_truth.jsonl").read_text().splitlines())
}


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to notice its end does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_captions_of_the_demo_video_are_true(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO], settings={"output": {"jsonl": {"path": "captions.jsonl"}}}) as daemon:
        last = daemon.wait_caption("film", after=40)["caption"]
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    scored = [(TRUTH[line["frame"]["seq"] % len(TRUTH)], line["text"].strip()) for line in lines]
    plain = [(truth["caption"], text) for truth, text in scored if not truth["ambiguous"]]
    assert len(lines) >= last - 1 and len(plain) >= 10
    assert [text for _, text in plain] == [truth for truth, _ in plain]


def test_term_ends_it_with_status_0_and_nothing_stays_behind(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        daemon.wait_caption("film")
        children = daemon.children()
        assert len(children) >= 3  # zygote, engine, capture
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
        assert not [pid for pid in children if alive(pid)]


def test_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        daemon.wait_caption("film")
        children = daemon.children()
        os.kill(daemon.process.pid, signal.SIGSTOP)  # so that it finds both signals at once
        daemon.signal(signal.SIGINT)
        daemon.signal(signal.SIGTERM)
        os.kill(daemon.process.pid, signal.SIGCONT)
        assert daemon.process.wait(30) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        for pid in children:  # they see the end of their sockets, or their parent's death
            while alive(pid):
                os.sched_yield()


def test_term_ends_it_in_time_also_while_its_processes_are_stopped(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO, {**VIDEO, "name": "other"}]) as daemon:
        daemon.wait_caption("other")
        children = daemon.children()
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
        for pid in children:  # stopped, they read no end of a socket: the kernel kills them
            while alive(pid):
                os.sched_yield()


def test_killed_daemon_leaves_no_children_and_can_be_started_again(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        daemon.wait_caption("film")
        children = daemon.children()
        daemon.process.kill()
        daemon.process.wait(30)
        for pid in children:
            while alive(pid):
                os.sched_yield()
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        daemon.wait_caption("film")


def test_bad_file_at_reload_changes_nothing_and_says_why_and_a_good_one_is_taken(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        before = daemon.wait_caption("film")["caption"]
        daemon.write("[server]\nprot = 1\n")
        daemon.signal(signal.SIGHUP)
        reason = daemon.wait_log("configuration stays as it was: (.*)")[1]
        assert "server.prot: there is no such setting (hint: did you mean 'port'?)" in reason
        daemon.wait_caption("film", after=before + 5)

        prompts = [{"id": "count", "text": "How many circles are there?"}]
        more = {"name": "more", "uri": "synthetic://?seed=3&fps=5", "captions_per_s": 2}
        daemon.change(source=[{**VIDEO, "prompt": prompts}, more], server={"port": 1})
        frames = daemon.source(daemon.get("/api/state"), "film")["frames"]
        daemon.signal(signal.SIGHUP)
        assert "a restart is needed for server.port" in daemon.wait_log("the new configuration is (.*)")[1]
        daemon.wait_caption("more")
        state = daemon.wait(lambda state: daemon.source(state, "film")["caption"]["prompt_id"] == "count")
        assert daemon.source(state, "film")["frames"] >= frames  # the capture went on
        assert daemon.source(state, "film")["attempt"] == 0 or daemon.source(state, "film")["reconnects"] == 0

        daemon.change(source=[more])
        daemon.signal(signal.SIGHUP)
        daemon.wait(lambda state: [source["name"] for source in state["sources"]] == ["more"])


def test_second_instance_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, [VIDEO]) as daemon:
        last = daemon.wait_caption("film")["caption"]
        command = [sys.executable, "-m", "runtime.captiond", str(daemon.config)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 3
        assert f"another vlm-captiond (pid {daemon.process.pid}) runs" in second.stderr
        assert "Traceback" not in second.stderr
        daemon.wait_caption("film", after=last)


def test_port_in_use_and_a_bundle_that_is_none_end_the_start_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime.captiond"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
        done = subprocess.run(
            [*command, "--demo", "--port", port], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, "Traceback" in done.stderr) == (7, False)
    assert port in done.stderr
    done = subprocess.run(
        [*command, "--bundle", str(tmp_path), "--source", "synthetic://", "--port", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    assert "no bundle there" in done.stderr


def test_systemd_hears_of_the_start_of_progress_of_a_reload_and_of_the_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with RunningDaemon(tmp_path, [VIDEO], environment=environment) as daemon:
            heard = [manager.recv(4096).decode()]
            while not heard[-1].startswith("READY=1"):
                heard.append(manager.recv(4096).decode())
            assert "STATUS=starting" in heard[0] and "EXTEND_TIMEOUT_USEC=" in heard[0]
            assert "watching 1 sources with demo-llava" in heard[-1]
            while heard[-1] != "WATCHDOG=1":
                heard.append(manager.recv(4096).decode())
            daemon.signal(signal.SIGHUP)
            while not heard[-1].startswith("RELOADING=1"):
                heard.append(manager.recv(4096).decode())
            while not heard[-1].startswith("READY=1"):
                heard.append(manager.recv(4096).decode())
            daemon.signal(signal.SIGTERM)
            while heard[-1] != "STOPPING=1":
                heard.append(manager.recv(4096).decode())


def test_secrets_are_in_no_command_line_environment_log_or_answer(tmp_path: Path) -> None:
    secret = "hunter2-very-secret"
    (tmp_path / "password").write_text(secret + "\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = {
            "name": "door",
            "uri": f"rtsp://127.0.0.1:{silent.getsockname()[1]}/main",
            "user": "viewer",
            "password_file": "password",
            "open_timeout_s": 1,
        }
        with RunningDaemon(tmp_path, [source], settings={"log": {"level": "debug"}}) as daemon:
            daemon.wait(lambda state: daemon.source(state, "door")["status"] == "no_signal")
            places = [daemon.process.pid, *daemon.children()]
            seen = [Path(f"/proc/{pid}/{name}").read_bytes() for pid in places for name in ("cmdline", "environ")]
            seen += [json.dumps(daemon.get("/api/state")).encode(), "\n".join(daemon.log).encode()]
            assert len(seen) > 6 and not [text for text in seen if secret.encode() in text]


def test_host_name_is_fit_for_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Robot_7.Local.lan")
    assert host_name() == "robot_7"
    monkeypatch.setattr(socket, "gethostname", lambda: "ø.lan")
    assert host_name() == "host"


def test_demo_bundle_is_the_one_that_the_tests_name() -> None:
    assert (DEMO_BUNDLE / "manifest.json").is_file()
