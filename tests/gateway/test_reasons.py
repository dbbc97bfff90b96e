"""Reasons that clients read if the queue has no room for their request."""

from __future__ import annotations

import re

from server.gateway.inference.error_mapping import REASONS, refused_to_problem
from server.http.problems import ProblemKind
from server.queue.script import FOLDER, Outcome, Refused


def test_each_reason_of_the_scripts_has_words() -> None:
    code = "".join((FOLDER / f"{name}.lua").read_text() for name in ("parts/admission", "enqueue_record"))
    assert {*re.findall(r"(?:check_bound|refusal_row)\('([a-z-]+)'", code), "memory"} == REASONS.keys()


def test_a_refusal_names_what_is_held_and_when_to_come_back() -> None:
    problem = refused_to_problem(Refused(Outcome(b"client-work", 60_010, 3, 300, 4200, 6, 600)))
    assert (problem.kind, problem.retry_after, problem.field) == (ProblemKind.CLIENT_QUOTA, 61, None)
    assert problem.detail == "one client has at most half of the work while others wait, too: 5 s are unfinished"


def test_what_never_fits_names_the_part_and_no_time() -> None:
    problem = refused_to_problem(Refused(Outcome(b"async-items", 0, 9, 900, 0, 8, 800)), "image")
    assert (problem.kind, problem.retry_after, problem.field) == (ProblemKind.TOO_LARGE, None, "image")
    assert problem.detail == "the job takes 9 items, and asynchronous jobs may hold 8, half of OPSIN_QUEUE_MAX_ITEMS"
