"""Notice a busy machine: choose the number of CPU threads while a run is training.

The threads of a step wait for each other, and spin while they wait. If another program takes one of
their cores, all wait for the thread that lost it, and a step can take ten times as long as with one
thread. Never spinning is no way out: on a quiet machine it costs 30% (results/busy_core.txt).
"""

import copy
import os
import time

import torch

TRIAL_SECONDS = 60  # how often to time both numbers of threads
PAIRS = 3  # steps with each of them in a trial
CLEAR = 3  # a trial ends after one pair if one number is this many times as fast as the other
GAIN = 1.1  # the other number must be this many times as fast to be worth a change


class Threads:
    """The number of CPU threads of a run: all of them, or half as many while that is faster.

    It changes only if a step gives the same weights with both, to the bit; otherwise a line
    advises. (An evaluation may differ in its tenth digit.) All processes decide alike.

        with threads:
            loss = one_step()
        threads.after_step(...)
    """

    def __init__(self, machine, may_change, say):
        self.machine = machine
        self.may_change = may_change
        self.say = say
        self.all = torch.get_num_threads()
        self.few = max(1, self.all // 2)
        self.now = self.all
        # Who sets OMP_NUM_THREADS has decided.
        is_cpu = machine.device.type == "cpu"
        is_on = is_cpu and self.all > 1 and "OMP_NUM_THREADS" not in os.environ
        # in all processes or in none
        (n_off,) = machine.sum([0 if is_on else 1])
        self.is_on = n_off == 0
        self.is_examined = False
        self.trial = []  # the numbers of threads of the next steps, while a trial runs
        self.seconds = {}  # of the trial's steps, by number of threads
        self.usual = 0.0  # seconds of a step in the last trial
        self.last_trial = 0.0  # when it was
        self.wait = 0.0  # how long it holds

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.step_seconds = time.perf_counter() - self.start

    def after_step(self, elapsed, one_step, objective, optimizers):
        """Set the number of threads of the next step. `elapsed`: the run's seconds of training.

        one_step: does the last step again, and returns the loss and the norm of the gradient
        """
        if not self.is_on:
            return
        (seconds,) = self.machine.sum([self.step_seconds])
        if self.trial:
            self.seconds[self.trial.pop()] += seconds
            self.end_trial(elapsed)
        if not self.is_examined:
            self.is_examined = True
            self.examine(one_step, objective, optimizers)
        if not self.trial and self.is_due(elapsed, seconds):
            self.trial = [self.all, self.few] * PAIRS
            self.seconds = {self.few: 0.0, self.all: 0.0}
        torch.set_num_threads(self.trial[-1] if self.trial else self.now)

    def is_due(self, elapsed, seconds):
        if not self.may_change:
            return False
        passed = elapsed - self.last_trial
        # The machine may have become busy a moment ago.
        is_slow = self.now == self.all and seconds > 2 * self.usual
        return passed >= self.wait or (is_slow and passed > TRIAL_SECONDS / 6)

    def end_trial(self, elapsed):
        """Decide, if the steps of the trial so far allow it."""
        n_left = len(self.trial)
        seconds = self.seconds.values()
        is_clear = n_left % 2 == 0 and max(seconds) > CLEAR * min(seconds)
        if n_left == 0 or is_clear:
            n_pairs = PAIRS - n_left // 2
            self.trial = []
            self.choose(elapsed, self.seconds[self.few] / n_pairs, self.seconds[self.all] / n_pairs)

    def choose(self, elapsed, few_seconds, all_seconds):
        """Keep the faster number, given the seconds of a step with each."""
        before = self.now
        if all_seconds > GAIN * few_seconds:
            self.now = self.few
        elif few_seconds > GAIN * all_seconds:
            self.now = self.all
        ratio = max(few_seconds, all_seconds) / min(few_seconds, all_seconds)
        if self.now != before:
            self.say(
                f"steps are {ratio:.1f} times as fast with {self.now} instead of {before} threads, "
                f"as busy as this machine is: going on with {self.now} (results stay the same)"
            )
        self.usual = min(few_seconds, all_seconds)
        self.last_trial = elapsed
        # A trial costs some slow steps. After a clear answer it may wait longer.
        self.wait = TRIAL_SECONDS * min(ratio, CLEAR)

    def examine(self, one_step, objective, optimizers):
        """Do a step with both numbers of threads, to compare the results and the time.

        It leaves the objective and its optimizers as they were.
        """
        modules = [objective, *optimizers]
        before = [copy.deepcopy(module.state_dict()) for module in modules]
        results = []
        seconds = []
        for n in (self.few, self.all):
            torch.set_num_threads(n)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 1.0  # at a low rate, rounding could hide a difference
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found = list(one_step())
            seconds.append(time.perf_counter() - start)
            results.append(found + [w.clone() for w in objective.state_dict().values()])
            for module, saved in zip(modules, before, strict=True):
                module.load_state_dict(copy.deepcopy(saved))
        n_different = sum(not torch.equal(a, b) for a, b in zip(*results, strict=True))
        n_different, few_seconds, all_seconds = self.machine.sum([n_different, *seconds])
        if n_different:
            self.may_change = False
        if not self.may_change and all_seconds > CLEAR * few_seconds:
            self.say(
                f"this machine is busy: a step took {all_seconds:.2f} s with {self.all} threads, "
                f"{few_seconds:.2f} s with {self.few}; OMP_NUM_THREADS={self.few} may be faster"
            )
