"""Two workers that are hosts of their own: each in a network namespace, with its address and a link that can be cut.

driver and Master 10.87.53.1 ── bridge ──┬── worker-1 10.87.53.11
                                         └── worker-2 10.87.53.12
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from deploy import cluster
from features.contracts import SESSIONS
from tests.cluster.submits import (
    CUT,
    DAY,
    Site,
    as_root,
    copy_without,
    is_published,
    log_of,
    rows,
    skip_unless_left,
    wait_for,
)

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and the program ip"
    ),
]
_BRIDGE, _HERE = "interest-br", "10.87.53.1"
_HOSTS = {"interest-1": "10.87.53.11", "interest-2": "10.87.53.12"}
_CUT_S = 20
_ETC = Path("/etc/netns")


def ip(text: str) -> None:
    as_root("ip", *text.split())


@pytest.fixture(scope="module")
def links() -> Iterator[None]:
    """The bridge and a namespace for each host, which knows its name; what an earlier run left is replaced."""
    removals = [*(f"netns del {name}" for name in _HOSTS), f"link del {_BRIDGE}"]
    for removal in removals:
        subprocess.run(["ip", *removal.split()], check=False, capture_output=True)
    with ExitStack() as undone:
        ip(f"link add {_BRIDGE} type bridge")
        undone.callback(ip, removals[-1])
        ip(f"addr add {_HERE}/24 dev {_BRIDGE}")
        ip(f"link set {_BRIDGE} up")
        for name, address in _HOSTS.items():
            ip(f"netns add {name}")
            undone.callback(ip, f"netns del {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {_BRIDGE} up")
            ip(f"-n {name} addr add {address}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
            own = _ETC / name  # `ip netns exec` lays its files over those in /etc
            own.mkdir(parents=True, exist_ok=True)
            undone.callback(shutil.rmtree, own)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        yield


@pytest.fixture(scope="module")
def hosts(links: None, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: ARG001
    """A cluster over these links; the environment is the one that `site` unpacked."""
    skip_unless_left(180)
    folder = tmp_path_factory.mktemp("hosts")
    found = cluster.up(folder, workers=0, host=_HERE)
    made = Site(folder, site.dist, site.unpacked, _HERE)
    try:
        for number, (name, address) in enumerate(_HOSTS.items(), 1):
            # A name of its own, too: by it Horovod tells which ranks share a machine.
            named = ("unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh")
            prefix = ("ip", "netns", "exec", name, *named)
            found = cluster.add_worker(found, f"worker-{number}", 1, 1024, address, prefix)
        wait_for("both workers", lambda: found.alive() == len(_HOSTS))
        yield made
    finally:
        made.end()


def test_a_link_that_is_cut_for_a_while_changes_no_row(hosts: Site, local_root: Path, tmp_path: Path) -> None:
    root = copy_without(local_root, tmp_path / "root", *CUT)
    driver = hosts.submit("sessionize", root, *log_of(local_root), is_held=True)
    wait_for("shuffle files", lambda: [*hosts.folder.glob("worker-1/scratch/**/shuffle_*.data")], driver)
    ip("link set interest-1 down")
    try:
        time.sleep(_CUT_S)
    finally:
        ip("link set interest-1 up")
    driver.finished()
    assert rows(root, SESSIONS.name) == rows(local_root, SESSIONS.name)


def test_ranks_on_two_hosts_train_the_model_of_one_host(hosts: Site, local_root: Path, tmp_path: Path) -> None:
    root = copy_without(local_root, tmp_path / "root", "bundle", "_checkpoints", "_training")
    driver = hosts.submit("train", root, "--launcher", "spark", "--ranks", "2")
    seen: set[str] = set()

    def are_all_seen() -> bool:
        seen.update(filter(None, map(_host_of, hosts.ranks())))
        return len(seen) == len(_HOSTS)

    wait_for("both ranks", are_all_seen, driver)
    assert seen == set(_HOSTS)
    driver.finished()
    assert _learned(root) == pytest.approx(_learned(local_root), rel=1e-3)


def test_a_host_that_does_not_know_its_own_name_is_named(hosts: Site, local_root: Path, tmp_path: Path) -> None:
    root = copy_without(local_root, tmp_path / "root", "bundle", "_checkpoints", "_training")
    name = next(iter(_HOSTS))
    names = _ETC / name / "hosts"  # written in place, so that the host sees it
    whole = names.read_text()
    names.write_text("127.0.0.1 localhost\n")
    try:
        said = hosts.submit("train", root, "--launcher", "spark", "--ranks", "2").finished(code=3)
    finally:
        names.write_text(whole)
    assert f"The machine {name} can't look up its own name" in " ".join(said.split())
    assert not is_published(root, "bundle")


def _learned(root: Path) -> dict[str, float]:
    """Losses and measures of the best epoch; nothing that a clock says."""
    found = json.loads((root / "bundle" / f"dt={DAY}" / "metrics.json").read_text())["best"]
    learned = {name: value for name, value in found.items() if name.startswith(("train_", "valid_"))}
    assert learned, found
    return learned


def _host_of(process: psutil.Process) -> str:
    """The name of the host that a process runs on, by its UTS namespace; empty where it has ended."""
    found = subprocess.run(
        ["nsenter", "--uts", "--target", str(process.pid), "hostname"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()
