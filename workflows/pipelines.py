"""Every order in which steps are done, as tables: each mode of migration, each way out of trouble.

Read a table from top to bottom: what is done, on which host, and how it is undone. Each step is a
module of ``tasks`` and a Celery task of its own name; ``workflows/canvas.py`` links them. The
freeze is between ``dump`` and ``restore``; the commit is inside ``restore``
(``sojourn/state/commit.py``).
"""

from __future__ import annotations

from tasks.confirm import confirm
from tasks.connect_pager import connect_pager
from tasks.copy_images import copy_images
from tasks.dump import dump, interrupt, resume
from tasks.examine import examine
from tasks.fence import fence
from tasks.forestall import forestall
from tasks.page_sender import page_sender
from tasks.page_server import page_server, stop_page_server
from tasks.preflight import preflight
from tasks.reclaim import reclaim
from tasks.reserve import release, reserve
from tasks.restore import decide, refuse, restore
from tasks.retire import retire
from tasks.settle import settle
from workflows.canvas import DESTINATION, SOURCE, Both, Pipeline, Step

STOP_AND_COPY = Pipeline(
    Step(examine, SOURCE),
    Step(preflight, DESTINATION),  # refuses for both hosts
    Both(
        [
            Step(reserve, DESTINATION, undo=release),
            Step(page_server, DESTINATION, undo=stop_page_server),
        ],
        [Step(reserve, SOURCE, undo=release)],
    ),
    Step(dump, SOURCE, undo=resume),  # the freeze begins
    Step(copy_images, SOURCE, frozen=True),  # from here on the destination decides
    Step(restore, DESTINATION, undo=refuse, frozen=True),  # commits, and the freeze ends
    Both(
        [Step(settle, DESTINATION), Step(release, DESTINATION), Step(confirm, DESTINATION)],
        [Step(retire, SOURCE), Step(release, SOURCE)],
    ),
)

POST_COPY = Pipeline(
    Step(examine, SOURCE),
    Step(preflight, DESTINATION),
    Both(
        [
            Step(reserve, DESTINATION, undo=release),
            Step(page_server, DESTINATION, undo=stop_page_server),
        ],
        [Step(reserve, SOURCE, undo=release), Step(page_sender, SOURCE)],
    ),
    Step(connect_pager, DESTINATION),
    Step(dump, SOURCE, undo=resume),  # the memory stays in the frozen original
    Step(copy_images, SOURCE, frozen=True),
    Step(restore, DESTINATION, undo=refuse, frozen=True),  # from here on the memory crosses
    Step(settle, DESTINATION),  # until then both hosts are needed
    Both(
        [Step(release, DESTINATION), Step(confirm, DESTINATION)],
        [Step(retire, SOURCE), Step(release, SOURCE)],
    ),
)

#: The modes of a migration, by the names that plans give them.
PIPELINES = {"stop-and-copy": STOP_AND_COPY, "post-copy": POST_COPY}

#: What both hosts do by the destination's verdict.
_BY_THE_VERDICT = (
    Step(resume, SOURCE, frozen=True),
    Step(release, SOURCE, frozen=True),
    Step(stop_page_server, DESTINATION, frozen=True),
    Step(release, DESTINATION, frozen=True),
)

#: A migration that stalled: ask the destination for its verdict, and act by it.
SETTLE = Pipeline(Step(decide, DESTINATION, frozen=True), *_BY_THE_VERDICT)

#: An abort goes to the source first, which stops at once and, before ``released``, decides alone;
#: then comes the destination.
ABORT = Pipeline(Step(interrupt, SOURCE, frozen=True), Step(reclaim, SOURCE, frozen=True))
ABORT_THERE = Pipeline(Step(refuse, DESTINATION, frozen=True), *_BY_THE_VERDICT)

#: What was withdrawn or given up before it began. No tree is frozen by it.
FORESTALL = Pipeline(Step(forestall, SOURCE))

#: The source by itself, with a verdict or an operator's decision in the message.
_SOURCE_ALONE = Pipeline(Step(resume, SOURCE, frozen=True), Step(release, SOURCE, frozen=True))

#: What is left to do when an operator has decided that one host is dead, by that host.
WITHOUT = {
    DESTINATION: _SOURCE_ALONE,
    SOURCE: Pipeline(
        Step(decide, DESTINATION, frozen=True), Step(release, DESTINATION, frozen=True)
    ),
}

#: What the dead host does if it comes back after all; this waits in its queue.
IF_BACK = {
    DESTINATION: Pipeline(
        Step(fence, DESTINATION, frozen=True), Step(release, DESTINATION, frozen=True)
    ),
    SOURCE: _SOURCE_ALONE,
}
