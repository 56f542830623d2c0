"""VMs come and go on one host for a day. Who still finds contiguous memory for a VMM segment, and how soon?

Run it with `vmmsim run churn`, or with `python churn.py`. It is an ordinary SimPy process: copy it and change it.
"""

import vmmsim as vs

GIB = 1 << 30
SIZES = [2, 4, 8, 16]
"""GiB of memory; small VMs are most."""
SHARES = [0.4, 0.3, 0.2, 0.1]
EVERY = 10 * 60 * 10**9
"""Mean nanoseconds between two arrivals."""
STAY = 3 * 3600 * 10**9
"""Mean nanoseconds that a VM stays: most leave soon, some stay long (log-normal)."""


def churn(sim):
    """Let VMs arrive for as long as the run goes on, each living its own life."""
    random = sim.random("churn")
    number = 0
    while True:
        yield sim.sleep(round(random.exponential(EVERY)))
        number += 1
        size = int(random.choice(SIZES, p=SHARES))
        stay = round(STAY * random.lognormal(-0.5, 1.0))
        sim.env.process(guest(sim, f"vm-{number}", size, stay))


def guest(sim, name, size, stay):
    """Live one VM's life: boot if there is room, run a web server, leave."""
    try:
        vm = yield sim.boot(
            name,
            memory=size * GIB,
            vcpus=2,
            mode="vmm-direct",
            workload={"name": "web", "footprint": f"{size * 512}MiB"},
        )
    except vs.Refused as no:
        print(no)
        return
    yield sim.sleep(stay)
    if vm.running:
        yield vm.shutdown()


if __name__ == "__main__":
    result = vs.simulate(host="96GiB", script=churn, until="1d", seed=1, name="churn", measure={"epoch_share": 0.05})
    print(result.summary["decisions"])
