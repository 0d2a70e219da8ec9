"""Temporary."""

from batchgauge.request import BatchItem
from batchgauge.serving.messages import Event, State


class Scheduler:
    def __init__(self, loop, policy):
        self.loop = loop
        self.q = []
        self.n = 0
        self.slots = loop.slots

    @property
    def idle(self):
        return self.loop.idle and not self.q

    def submit(self, job):
        self.q.append(job)

    def cancel(self, name):
        self.q = [j for j in self.q if j.id != name]
        self.loop.cancel(name)

    def step(self):
        while self.q and len(self.loop) < self.slots:
            j = self.q.pop(0)
            self.loop.add([BatchItem(j.id, j.request)])
        self.n += 1
        out = []
        for e in self.loop.step():
            if e.ended:
                self.loop.response(e.id)
            out.append(
                Event(
                    e.id,
                    () if e.token is None else (e.token,),
                    e.finish,
                    "failed" if e.error else None,
                    e.error or "",
                )
            )
        return out

    def state(self):
        return State(len(self.q), len(self.loop), 0, self.loop.kv_bytes, self.n)
