/*
 * The safety rule as a model: one migration, its two journals, its trees, and everything that may go wrong.
 *
 * A process has one owner. It is never lost, and it never runs twice. `spin` tries every order of events:
 *
 *     spin -a protocol.pml && gcc -O2 -DNOFAIR -DNOSTUTTER -o pan pan.c && ./pan -a
 *
 * Faults are not counted: any number may happen, in any order, until one instant from which on there are none (`calm`).
 * From then on every run must come to an end, and that must be a good one. "In the end" means: once faults cease.
 *
 * Each `atomic` is one instant: a journal write, a message taken or sent, one act. Between two of them anything may die.
 * Terms are those of docs/glossary.md.
 *
 * Rules that a macro breaks, so that a test can show that the checker sees it (spin -D...):
 *
 *     RESUME_WITHOUT_VERDICT            the source's reconciler resumes from `released` without asking
 *     KILL_BEFORE_ACCEPT                the source kills the original as soon as the images are sent
 *     RETIRE_ON_ACCEPTED                the destination's `accepted` is taken for the verdict
 *     ACCEPT_AFTER_REFUSE               the commit is written over `refused`
 *     RESTORE_WITHOUT_CHECKING_JOURNAL  neither the step nor the action script looks at the phase
 *     CLEAR_AWAY_BEFORE_REFUSED         what a dead restore left is killed before `refused` is written
 *     TAKE_BACK_A_RUNNING_TREE          `accepted` is taken back although the tree runs
 *     TAKE_BACK_AFTER_A_CRASH           `accepted` is taken back because its host died, whatever had run by then
 *     RESTORE_BEFORE_HELD               CRIU's restore is at work before the journal knows of it
 *     DUMP_BEFORE_HELD                  the holder's dump is at work before the journal knows of it
 *     RESTORE_AGAINST_THE_WORD          a destination that was declared dead restores when it is back
 *
 * and, with POST_COPY:
 *
 *     RETIRE_BEFORE_FILLED              the original is killed because the tree runs, although pages are missing
 *     RETIRE_BEFORE_ENDED               ... because the tree is lost, although it has not been ended yet
 *     RESUME_WHAT_IS_LOST               ... is resumed, because the tree is lost where it ran last
 *     RUN_WITHOUT_PAGER                 the commit does not ask whether anybody is there to fill
 *     GO_ON_WITHOUT_PAGER               the tree is not ended when pager and guard are dead
 *     GO_ON_WITHOUT_ORIGINAL            the pager lets go when the original is gone, and the kernel hands out zeros
 *     WAIT_WITHOUT_ORIGINAL             the tree waits for pages that will never come
 *     END_PAGER_BEFORE_TREE             what is lost is ended in the wrong order
 *     END_WHAT_IS_WHOLE                 the tree is ended although no page is missing, since that was not reported yet
 *
 * Three more are no breach but another setting or a harder question:
 *
 *     POST_COPY      the memory stays in the original until the tree runs on the destination
 *     KEEP_IMAGES    a restore leaves its images whole (`auto_dedup` off), so it may be tried again
 *     NOT_EVEN_THEN  also after an operator's resolution, nothing that ran on the destination may be taken back
 *
 * And `-DONLY=<number>` looks for one rule's breach only: the numbers are those behind the rules below.
 */

/* The phase in a journal. `unknown`: this host has no row of the migration. */
mtype:phase = { unknown, open, freezing, frozen, released, retired, resumed,
                reserved, restoring, accepted, restored, refused };

/* A tree: `stopped` is the frozen original, `stuck` is rebuilt by CRIU but not one instruction of it has run. */
mtype:tree = { none, running, stopped, stuck, dead };

/* Where a worker is inside a step; a worker that dies is `idle` afterwards and has forgotten everything. */
mtype:at = { idle,
             start_dump, await_dump, send_images, await_confirmation, thaw, kill_original,   /* on the source */
             start_restore, hold_restore, await_restore, look, deny, clear_away, end_tree }; /* on the destination */

/* CRIU and its action script; they do not depend on the worker's life, nor the script on CRIU's. */
mtype:program = { gone, unheld, begun, dumping, dumped, failed,                              /* the dump */
                  building, rebuilt, committed, woken, finishing,                            /* the restore */
                  accepting, said_yes, said_no, completing };                                /* the action script */

/*
 * The memory of the tree on the destination. In stop-and-copy it is there before the commit, and `whole`. In post-copy
 * pages are `missing` until the last one is in place (`filled`) and the journal knows that (`settled`). `lost`: the
 * journal knows that they will never come, or its host has booted since.
 */
mtype:memory = { whole, missing, filled, settled, lost };

/* The pager and its guard: one thing, since each replaces the other. `killed`: both, after the commit. */
mtype:pager = { absent, serving, killed };

/* The journals, on disk: nothing takes them away. `held` is the note that the tree is this migration's. */
mtype:phase s_phase = unknown;
mtype:phase d_phase = unknown;
bool s_held = false;

/* The trees. `d_ran`: an instruction of the tree has run on the destination, so that the original is out of date. */
mtype:tree s_tree = running;
mtype:tree d_tree = none;
bool d_ran = false;
mtype:memory d_memory = whole;

/* What a host loses when it dies: its worker's place, its programs, its tmpfs. */
mtype:at s_at = idle;
mtype:at d_at = idle;
mtype:program dump = gone;
mtype:program criu = gone;
mtype:program script = gone;
mtype:pager d_pager = absent;
bool d_criu_held = false;            /* whether the journal knows of the CRIU that restores */
bool d_listens = false;              /* the holder takes memory and images */
bool d_pages = false;                /* all memory is in the tmpfs */
bool d_small = false;                /* all small images are in the tmpfs, and were checked */
mtype:phase d_seen = unknown;        /* the phase that a step on the destination has read; it may be out of date */
bool d_asked = false;                /* somebody waits for the verdict */

/*
 * Messages: whether one is under way. It may be taken and yet come again, as often as it likes and as late: so it is
 * doubled and overtaken. The verdict is the same message whether a step, a rollback or an answer brings it.
 */
bool m_source = true;                /* to the source: its next step (preflight, dump, copy_images), by its phase */
bool m_destination = false;          /* to the destination: its next step (reserve and page_server, restore) */
bool m_refuse = false;               /* to the destination: a rollback begins, because a step failed or people asked for it */
bool m_ask = false;                  /* to the destination: the source's reconciler asks for the verdict */
bool m_restored = false;             /* to the source: the verdict */
bool m_refused = false;              /* to the source: the verdict */
bool stream = false;                 /* the small images, on their way through the page channel */

/*
 * An operator's resolution that the destination is dead, kept where the destination looks before it restores. It is
 * given for a host that is off, or for one that was only cut off and had not begun to restore.
 */
bool w_dead = false;

/*
 * The destination's host died while it let the tree run. It cannot be known whether one of its instructions has run, so
 * only an operator takes the original back; until then it stays frozen, in doubt, which is a permitted end.
 */
bool d_unknown = false;

bool calm = false;                   /* no fault from now on */
bool s_lost = false;                 /* the tree died on the source, with its host or by itself */
bool d_lost = false;                 /* the destination's host died at least once */
bool d_lost_it = false;              /* ... while the tree ran there */

/* What must hold. Each is true; what would break it sets it to false, so that the checker names it. */
bool never_two_run = true;                   /* 1 */
bool never_resumed_and_taken = true;         /* 2 */
bool never_retired_and_refused = true;       /* 3 */
bool never_restored_and_gone = true;         /* 4 */
bool nothing_that_ran_is_taken_back = true;  /* 5 */
bool both_rows_are_final = true;             /* 6 */
bool one_runs_in_the_end = true;             /* 7 */
bool nothing_is_left_behind = true;          /* 8 */
bool never_retired_while_pages_are_missing = true;  /* 9 */
bool never_reads_zeros = true;               /* 10 */
bool nobody_waits_in_vain = true;            /* 11 */
bool it_never_arrives = true;                /* 12: no rule; the checker must find that it can, else all this is empty */

#ifdef ONLY
#define CHECKED(rule) (rule == ONLY)
#else
#define CHECKED(rule) (rule != 12)
#endif

/* Whether a restore has all that it needs; and the tree. */
#ifdef POST_COPY
#define COMPLETE d_small
#else
#define COMPLETE (d_pages && d_small)
#endif
#define WHOLE (d_memory == whole || d_memory == settled)
#define WANTING (d_memory == missing || d_memory == lost)

/* The window, in which the tree needs its pager and its original: until it is settled, or was ended because it is lost. */
#ifdef RETIRE_BEFORE_ENDED
#define UNSETTLED (d_phase == restored && (d_memory == missing || d_memory == filled))
#else
#define UNSETTLED (d_phase == restored && !WHOLE && d_tree == running)
#endif

/* In the window the answer is `restored`, but unsettled. The source does nothing then: so here that is no answer. */
#ifdef RETIRE_BEFORE_FILLED
#define MAY_ANSWER true
#else
#define MAY_ANSWER (!UNSETTLED)
#endif

/*
 * Whether pages may still come. That the original is gone is told by the sender or the source's reconciler; as long as
 * the message is under way, or if it is lost, that is as if nobody had looked yet.
 */
#ifdef WAIT_WITHOUT_ORIGINAL
#define FILLS (d_pager == serving)
#else
#ifdef GO_ON_WITHOUT_PAGER
#define FILLS (s_tree != dead)
#else
#define FILLS (d_pager == serving && s_tree != dead)
#endif
#endif
#ifdef END_WHAT_IS_WHOLE
#define IS_BROKEN (UNSETTLED && (d_memory == lost || !FILLS))
#else
#define IS_BROKEN (UNSETTLED && (d_memory == lost || (d_memory == missing && !FILLS)))
#endif

#ifdef END_PAGER_BEFORE_TREE
#define MAY_END_PAGER true
#else
#define MAY_END_PAGER (!UNSETTLED)
#endif

#ifdef RUN_WITHOUT_PAGER
#define IS_SERVED true
#else
#define IS_SERVED (d_memory == whole || d_pager == serving)
#endif

#ifdef RESTORE_BEFORE_HELD
#define RESTORE_IS_SEEN (criu != gone && d_criu_held)
#else
#define RESTORE_IS_SEEN (criu != gone)
#endif

#ifdef TAKE_BACK_A_RUNNING_TREE
#define MAY_BE_TAKEN_BACK true
#else
#define MAY_BE_TAKEN_BACK (d_tree != running)
#endif

#ifdef RESTORE_AGAINST_THE_WORD
#define MAY_RESTORE true
#else
#define MAY_RESTORE (!w_dead)
#endif

#ifdef TAKE_BACK_AFTER_A_CRASH
#define CAN_TELL true
#else
#define CAN_TELL (!d_unknown || w_dead)
#endif

#define IN_DOUBT (d_phase == accepted && !CAN_TELL)

#ifdef NOT_EVEN_THEN
#define EXCUSED false
#else
#define EXCUSED w_dead
#endif

/* Messages are acknowledged when they are taken; a second copy of it may still be somewhere. */
inline take(message) {
    if
    :: message = false
    :: !calm -> skip
    fi
}

/*
 * A message for a phase that is over: a step that is done is answered with its outcome, and so the next message goes
 * out again; one that is not done fails. The first only while there are faults: two old messages could call each other
 * endlessly, which the real ones cannot, since they name their step.
 */
inline too_late(next) {
    if
    :: !calm -> next = true
    :: m_refuse = true
    fi
}

/* ------------------------------------------------------------------------------------------------ the source */

/* One delivery at a time: a lock per migration and host keeps steps and the reconciler apart. */
active proctype source() {
end:
    do
    /* The pipeline. Only the first step may open a row. */
    :: atomic { s_at == idle && m_source -> take(m_source);
        if
        :: s_phase == unknown -> s_phase = open; m_destination = true
        :: s_phase == open -> s_held = true; s_phase = freezing; s_at = start_dump
        :: s_phase == frozen -> s_phase = released; s_at = send_images    /* the phase first, then the first byte */
        :: else -> too_late(m_destination)
        fi }
    :: atomic { s_at == start_dump ->
#ifdef DUMP_BEFORE_HELD
        dump = unheld;
#else
        dump = begun;    /* the journal knew of the holder before that could touch the tree */
#endif
        s_at = await_dump }
    :: atomic { s_at == await_dump && dump == dumped -> dump = gone; s_phase = frozen; m_source = true; s_at = idle }
    :: atomic { s_at == await_dump && (dump == failed || dump == gone) -> dump = gone; m_refuse = true; s_at = idle }
    :: atomic { s_at == send_images -> stream = true; s_at = await_confirmation }
    :: atomic { s_at == await_confirmation && !stream && d_small -> m_destination = true; s_at = idle;
#ifdef KILL_BEFORE_ACCEPT
        s_phase = retired; s_at = kill_original
#endif
        }
    :: atomic { s_at == await_confirmation && (!calm || (!stream && !d_small)) -> m_refuse = true; s_at = idle }

    /* The verdict, whoever brings it. The phase is written before the act that it permits. */
    :: atomic { s_at == idle && m_restored -> take(m_restored);
        if
        :: s_phase == released -> s_phase = retired; s_at = kill_original
        :: else -> skip
        fi }
    :: atomic { s_at == idle && m_refused -> take(m_refused);
        if
        :: s_phase == unknown -> s_phase = resumed    /* so that a late message cannot begin it */
        :: s_phase == open || s_phase == freezing || s_phase == frozen || s_phase == released ->
            s_phase = resumed; s_at = thaw
        :: else -> skip
        fi }
    :: atomic { s_at == thaw ->
        if
        :: dump == begun || dump == dumping || dump == dumped || dump == failed -> dump = gone
        :: else -> skip
        fi;
        if
        :: s_tree == stopped -> s_tree = running
        :: else -> skip
        fi;
        s_held = false; s_at = idle }
    :: atomic { s_at == kill_original ->
        if
        :: s_tree == stopped -> s_tree = dead
        :: else -> skip
        fi;
        s_held = false; s_at = idle }

    /*
     * The reconciler. A row is stalled by a clock, and clocks are wrong: so it may come at any time.
     * A rollback that reaches the source without a verdict does the same.
     */
    :: atomic { s_at == idle && (s_phase == open || s_phase == freezing || s_phase == frozen) ->
        s_phase = resumed; s_at = thaw }
    :: atomic { s_at == idle && w_dead && s_phase == released -> s_phase = resumed; s_at = thaw }
#ifdef RESUME_WITHOUT_VERDICT
    :: atomic { s_at == idle && s_phase == released -> s_phase = resumed; s_at = thaw }
#endif
    :: atomic { s_at == idle && s_phase == released && !m_ask && !m_restored && !m_refused -> m_ask = true }
    :: atomic { s_at == idle && s_phase == resumed && s_held -> s_at = thaw }
    :: atomic { s_at == idle && s_phase == retired && s_held -> s_at = kill_original }
    od
}

/* The holder and CRIU's dump, in a session of their own. Without a page channel it fails and lets the tree run on. */
active proctype dumper() {
end:
    do
    :: atomic { dump == unheld && s_tree == running -> s_tree = stopped; dump = dumping }
    :: atomic { dump == begun && s_tree == running -> s_tree = stopped; dump = dumping }
    :: atomic { (dump == unheld || dump == begun) && s_tree == dead -> dump = failed }
#ifdef POST_COPY
    :: atomic { dump == dumping -> dump = dumped }    /* nothing leaves the host */
#else
    :: atomic { dump == dumping && d_listens -> d_pages = true; dump = dumped }
    :: atomic { dump == dumping && !d_listens -> s_tree = running; dump = failed }
#endif
    od
}

/* ------------------------------------------------------------------------------------------- the destination */

/* The worker is at rest again, and remembers nothing. */
inline d_rest() {
    d_at = idle; d_seen = unknown; d_asked = false
}

active proctype destination() {
end:
    do
    /* The pipeline. Its last step, settle, waits for the end of the window. */
    :: atomic { d_at == idle && m_destination && MAY_ANSWER -> take(m_destination);
        if
        :: d_phase == unknown -> d_phase = reserved; d_listens = true; m_source = true
        :: d_phase == reserved && COMPLETE && MAY_RESTORE -> d_phase = restoring; d_at = start_restore
        :: d_phase == reserved && COMPLETE && !MAY_RESTORE -> m_refuse = true
        :: d_phase == reserved && !COMPLETE && !calm -> d_listens = true; m_source = true    /* was not recorded as done */
        :: d_phase == restored -> m_restored = true
#ifdef RESTORE_WITHOUT_CHECKING_JOURNAL
        :: d_phase != reserved && COMPLETE && criu == gone && script == gone && d_tree == none -> d_at = start_restore
#endif
        :: d_phase != unknown && d_phase != restored && !(d_phase == reserved && COMPLETE) -> too_late(m_source)
        fi }
    :: atomic { stream -> stream = false;    /* the holder, not the worker */
        if
        :: d_listens -> d_small = true
        :: else -> skip
        fi }
    :: atomic { d_at == start_restore ->
#ifdef POST_COPY
        d_pager = serving;
#endif
#ifdef RESTORE_BEFORE_HELD
        criu = begun; d_at = hold_restore }
    :: atomic { d_at == hold_restore -> d_criu_held = true; d_at = await_restore }
#else
        criu = begun; d_criu_held = true; d_at = await_restore }
#endif
    :: atomic { d_at == await_restore && criu == gone -> d_at = idle;
        if
        :: d_phase == restored && MAY_ANSWER -> m_restored = true
        :: d_phase == restored && !MAY_ANSWER -> m_destination = true    /* settle */
        :: else -> m_refuse = true
        fi }

    /*
     * refuse: no for good, if it is not too late; else the verdict that stands. What was read may be out of date when
     * the phase is written, since CRIU's script writes too: compare-and-set decides, and nothing is killed before it.
     */
    :: atomic { d_at == idle && m_refuse -> take(m_refuse); d_asked = true; d_seen = d_phase; d_at = look }
    :: atomic { d_at == look && d_seen == restored ->
#ifdef RESUME_WHAT_IS_LOST
        if
        :: d_memory == lost -> m_refused = d_asked || m_refused
        :: else -> m_restored = (d_asked && MAY_ANSWER) || m_restored
        fi;
#else
        m_restored = (d_asked && MAY_ANSWER) || m_restored;
#endif
        d_rest() }
    :: atomic { d_at == look && d_seen == accepted && (RESTORE_IS_SEEN || !CAN_TELL) -> d_rest() }    /* "ask again" */
#ifdef CLEAR_AWAY_BEFORE_REFUSED
    :: atomic { d_at == look && d_seen == accepted && !RESTORE_IS_SEEN ->
        if
        :: d_tree == running || d_tree == stuck -> d_tree = none
        :: else -> skip
        fi;
        d_at = deny }
#else
    :: atomic { d_at == look && d_seen == accepted && !RESTORE_IS_SEEN && CAN_TELL && MAY_BE_TAKEN_BACK -> d_at = deny }
    :: atomic { d_at == look && d_seen == accepted && !RESTORE_IS_SEEN && CAN_TELL && !MAY_BE_TAKEN_BACK ->
        /* CRIU died just before it could report: the tree runs, and that is all that `restored` means. */
        if
        :: d_phase == accepted -> d_phase = restored; m_restored = (d_asked && MAY_ANSWER) || m_restored
        :: else -> skip
        fi;
        d_rest() }
#endif
    :: atomic { d_at == look && (d_seen == unknown || d_seen == reserved || d_seen == restoring) -> d_at = deny }
    :: atomic { d_at == look && d_seen == refused -> d_at = clear_away }
    :: atomic { d_at == deny ->
        if
        :: d_phase == d_seen -> d_phase = refused; d_at = clear_away
        :: else -> d_rest()    /* somebody else wrote first: whoever asked will ask again */
        fi }
    :: atomic { d_at == clear_away ->
        if
        :: RESTORE_IS_SEEN -> criu = gone; d_criu_held = false
        :: else -> skip
        fi;
        if
        :: d_tree == running || d_tree == stuck -> d_tree = none
        :: else -> skip
        fi;
        d_listens = false; d_pages = false; d_small = false; d_pager = absent;
        m_refused = d_asked || m_refused;    /* the answer only when nothing of the tree is left */
        d_rest() }

    /* The source's reconciler asks. Without a verdict it gets no answer yet: that is the same as asking again. */
    :: atomic { d_at == idle && m_ask && (d_phase == unknown || d_phase == refused || d_phase == restored) && MAY_ANSWER ->
        take(m_ask); d_asked = true; d_seen = d_phase; d_at = look }
#ifdef RETIRE_ON_ACCEPTED
    :: atomic { d_at == idle && m_ask && d_phase == accepted -> take(m_ask); m_restored = true }
#endif

    /* The reconciler: forward with whole images, else no. Its clock may be wrong, too. */
    :: atomic { d_at == idle && (d_phase == reserved || d_phase == restoring) && COMPLETE && MAY_RESTORE &&
        criu == gone && script == gone ->
        if
        :: d_tree == stuck -> d_tree = none    /* of the attempt before; possible with KEEP_IMAGES only */
        :: else -> skip
        fi;
        d_phase = restoring; d_at = start_restore }
    :: atomic { d_at == idle && (d_phase == reserved || d_phase == restoring) && !(COMPLETE && MAY_RESTORE) &&
        !RESTORE_IS_SEEN ->
        d_asked = false; d_seen = d_phase; d_at = look }
    :: atomic { d_at == idle && d_phase == accepted && !RESTORE_IS_SEEN && CAN_TELL ->
        d_asked = false; d_seen = d_phase; d_at = look }
    :: atomic { d_at == idle && d_phase == refused &&
        (d_listens || d_pages || d_small || d_tree == stuck || d_pager == serving) ->
        d_asked = false; d_at = clear_away }

    /*
     * The end of the window, by the step that waits for it or by the reconciler. A tree that will never be whole is
     * ended: that is written first, and the pager goes last, for without it the tree would read zeros.
     */
    :: atomic { d_at == idle && UNSETTLED && d_memory == filled && d_pager != serving ->
        d_memory = settled }    /* pager and guard died just before they could report */
    :: atomic { d_at == idle && IS_BROKEN -> d_memory = lost; d_at = end_tree }
    :: atomic { d_at == end_tree -> d_tree = dead; d_rest() }
    :: atomic { d_at == idle && d_phase == restored && d_memory == lost && MAY_END_PAGER && d_pager == serving ->
        d_pager = absent }
    od
}

/* CRIU's restore. It asks its script whether the rebuilt tree may run; a no makes it kill the tree silently. */
active proctype restore() {
end:
    do
    :: atomic { criu == begun -> criu = building; d_tree = stuck;
#ifndef KEEP_IMAGES
        d_pages = false; d_small = false;    /* `auto_dedup`: images are given up while they are read */
#endif
#ifdef POST_COPY
        d_memory = missing
#endif
        }
    :: atomic { criu == building && script == gone -> criu = rebuilt; script = accepting }
    :: atomic { criu == rebuilt && script == said_yes -> criu = committed; script = gone }
    :: atomic { criu == rebuilt && script == said_no -> d_tree = none; criu = gone; script = gone }
    :: atomic { criu == committed && d_tree == stuck -> d_tree = running; d_ran = true; criu = woken }
    :: atomic { criu == committed && d_tree != stuck -> criu = gone }    /* somebody killed it */
    :: atomic { criu == woken -> criu = finishing; script = completing }
    :: atomic { criu == finishing && script == gone -> criu = gone; d_criu_held = false }
    od
}

/* The action script (sojourn/state/commit.py): a process of its own, which may outlive the CRIU that called it. */
active proctype action_script() {
end:
    do
    :: atomic { script == accepting ->
        if
        :: d_phase == restoring && IS_SERVED -> d_phase = accepted; script = said_yes
#ifdef ACCEPT_AFTER_REFUSE
        :: d_phase == refused -> d_phase = accepted; script = said_yes
#endif
#ifdef RESTORE_WITHOUT_CHECKING_JOURNAL
        :: d_phase != restoring -> script = said_yes
#endif
        :: else -> script = said_no
        fi }
    :: atomic { script == completing ->
        if
        :: d_phase == accepted -> d_phase = restored
        :: else -> skip
        fi;
        script = gone }
    :: atomic { (script == said_yes || script == said_no) && criu != rebuilt -> script = gone }    /* no CRIU waits for it */
    od
}

#ifdef POST_COPY
/*
 * The pager, with the sender as its other end: that has no state, and is started again when it dies. Pages come from an
 * original that stands still, and from nowhere else.
 */
active proctype pager() {
end:
    do
    :: atomic { d_pager == serving && d_tree == running && d_memory == missing && s_tree == stopped &&
        s_phase == released -> d_memory = filled }
    :: atomic { d_pager == serving && d_memory == filled -> d_memory = settled; d_pager = absent }
#ifdef GO_ON_WITHOUT_ORIGINAL
    :: atomic { d_pager == serving && d_tree == running && d_memory == missing && s_tree == dead -> d_pager = absent }
#endif
    od
}
#endif

/* ------------------------------------------------------------------------------------------------ the faults */

active proctype faults() {
    do
    /* Messages are lost; Redis is emptied. */
    :: m_source -> m_source = false
    :: m_destination -> m_destination = false
    :: m_refuse -> m_refuse = false
    :: m_ask -> m_ask = false
    :: m_restored -> m_restored = false
    :: m_refused -> m_refused = false
    :: stream -> stream = false

    /* A step fails by itself or comes to its deadline, or an operator aborts: a rollback at any time. */
    :: !m_refuse -> m_refuse = true

    /* A worker is killed. Its message is gone; what it started goes on. */
    :: s_at != idle -> s_at = idle
    :: atomic { d_at != idle -> d_rest() }

    /* The holder on the destination ends. */
    :: d_listens -> d_listens = false

    /* CRIU's dump is killed, or fails: the tree runs on, or stays stopped. */
    :: atomic { dump == begun || dump == unheld -> dump = failed }
    :: atomic { dump == dumping -> dump = failed }
    :: atomic { dump == dumping -> dump = failed; s_tree = running }

    /* CRIU's restore is killed and leaves what there is; or it fails, and kills the tree that has not run. */
    :: atomic { criu != gone -> criu = gone; d_criu_held = false }
    :: atomic { (criu == begun || criu == building || criu == committed) -> criu = gone; d_criu_held = false;
        d_tree = none }

    /* The action script is killed, before or after it wrote. */
    :: script == accepting || script == said_yes -> script = said_no
    :: script == completing -> script = gone

#ifdef POST_COPY
    /* Pager and guard are killed; or the original, which is the destination's memory by now. */
    :: atomic { d_pager == serving ->
        if
        :: WANTING && (d_phase == accepted || d_phase == restored) -> d_pager = killed
        :: else -> d_pager = absent
        fi }
    :: atomic { s_tree == stopped && s_phase == released -> s_tree = dead; s_lost = true }
#endif

    /* A host dies and comes back: processes and tmpfs are gone, the journal is not. */
    :: atomic { !s_lost || s_at != idle || dump != gone ->
        if
        :: s_tree != dead -> s_tree = dead; s_lost = true
        :: else -> skip
        fi;
        s_at = idle; dump = gone; stream = false }
    :: atomic { d_lost_it = d_lost_it || d_tree == running; d_lost = true;
        d_unknown = d_unknown || d_phase == accepted;
        if
        :: d_tree == running -> d_tree = dead
        :: d_tree == stuck -> d_tree = none
        :: else -> skip
        fi;
        if
        :: d_memory == missing || d_memory == filled -> d_memory = lost
        :: else -> skip
        fi;
        if
        :: d_pager == serving -> d_pager = absent
        :: else -> skip
        fi;
        d_rest(); criu = gone; d_criu_held = false; script = gone;
        d_listens = false; d_pages = false; d_small = false; stream = false;
        if
        :: w_dead = true    /* and an operator declares it dead before it is back */
        :: skip
        fi }

    /* An operator declares a destination dead that is only cut off, or decides what cannot be known. */
    :: atomic { !w_dead && (d_phase == unknown || d_phase == reserved || d_unknown) -> w_dead = true }

    :: calm = true; break
    od;
    /* An endless run while this process waits is an "acceptance cycle", which the checker looks for. */
accept_calm:
end_calm:
    false
}

/* --------------------------------------------------------------------------------------------- what must hold */

active proctype at_every_instant() {
end:
    do
    :: atomic { CHECKED(1) && s_tree == running && d_tree == running ->
        never_two_run = false; assert(never_two_run) }
    :: atomic { CHECKED(2) && s_phase == resumed &&
        (d_tree == running || ((d_phase == accepted || d_phase == restored) && !w_dead)) ->
        never_resumed_and_taken = false; assert(never_resumed_and_taken) }
    :: atomic { CHECKED(3) && s_phase == retired && d_phase == refused ->
        never_retired_and_refused = false; assert(never_retired_and_refused) }
    :: atomic { CHECKED(4) && d_phase == restored && d_tree != running && !d_lost && d_memory != lost ->
        never_restored_and_gone = false; assert(never_restored_and_gone) }
    :: atomic { CHECKED(5) && s_phase == resumed && d_ran && !EXCUSED ->
        nothing_that_ran_is_taken_back = false; assert(nothing_that_ran_is_taken_back) }
#ifdef POST_COPY
    :: atomic { CHECKED(9) && s_phase == retired && d_tree == running && WANTING ->
        never_retired_while_pages_are_missing = false; assert(never_retired_while_pages_are_missing) }
    /* Where both are killed it does, for the moment until it is ended (docs/memory.md). */
    :: atomic { CHECKED(10) && d_tree == running && WANTING && d_pager == absent ->
        never_reads_zeros = false; assert(never_reads_zeros) }
#endif
    od
}

/* `timeout` is Promela's term for: no process can move any more. */
active proctype in_the_end() {
end:
    atomic { timeout ->
        both_rows_are_final =
            (s_phase == unknown || s_phase == retired || s_phase == resumed) &&
            (d_phase == unknown || d_phase == restored || d_phase == refused);
        both_rows_are_final = both_rows_are_final || (IN_DOUBT && s_phase == released);
        assert(both_rows_are_final || !CHECKED(6));
        /*
         * Exactly one, unless a host died that had the tree: the source's before the destination had all of it, or the
         * one on which it ran by then. In post-copy also the original itself, or pager and guard.
         */
        one_runs_in_the_end = s_tree == running || d_tree == running || d_lost_it || IN_DOUBT;
        one_runs_in_the_end = one_runs_in_the_end || (s_lost && (d_phase != restored || WANTING)) || d_pager == killed;
        assert(one_runs_in_the_end || !CHECKED(7));
        nothing_is_left_behind = (!s_held && s_tree != stopped) || IN_DOUBT;
        nothing_is_left_behind = nothing_is_left_behind && d_tree != stuck && dump != dumping && criu == gone;
        nothing_is_left_behind = nothing_is_left_behind && d_pager != serving;
        assert(nothing_is_left_behind || !CHECKED(8));
        nobody_waits_in_vain = !(d_tree == running && !WHOLE);
        assert(nobody_waits_in_vain || !CHECKED(11));
        it_never_arrives = !(s_phase == retired && d_phase == restored && d_tree == running && WHOLE);
        assert(it_never_arrives || !CHECKED(12)) }
}
