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
 * Words are those of docs/glossary.md.
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
 * Two more are no breach but another setting or a harder question:
 *
 *     KEEP_IMAGES    a restore leaves its images whole (`auto_dedup` off), so it may be tried again
 *     NOT_EVEN_THEN  also where an operator says so, nothing that ran on the destination may be taken back
 *
 * And `-DONLY=<number>` looks for one rule's breach only: the numbers are those behind the rules below.
 */

/* What a journal says. `unknown`: this host has never heard of the migration. */
mtype:phase = { unknown, open, freezing, frozen, released, retired, resumed,
                reserved, restoring, accepted, restored, refused };

/* A tree: `stopped` is the frozen original, `stuck` is rebuilt by CRIU but not one instruction of it has run. */
mtype:tree = { none, running, stopped, stuck, dead };

/* Where a worker is inside a step; a worker that dies is `idle` afterwards and has forgotten everything. */
mtype:at = { idle,
             start_dump, await_dump, send_images, await_confirmation, thaw, kill_original,   /* on the source */
             start_restore, hold_restore, await_restore, look, deny, clear_away };           /* on the destination */

/* CRIU and its action script; they do not depend on the worker's life, nor the script on CRIU's. */
mtype:program = { gone, unheld, begun, dumping, dumped, failed,                              /* the dump */
                  building, rebuilt, committed, woken, finishing,                            /* the restore */
                  accepting, said_yes, said_no, completing };                                /* the action script */

/* The journals, on disk: nothing takes them away. `held` is the note that the tree is this migration's. */
mtype:phase s_phase = unknown;
mtype:phase d_phase = unknown;
bool s_held = false;

/* The trees. `d_ran`: an instruction of the tree has run on the destination, so that the original is out of date. */
mtype:tree s_tree = running;
mtype:tree d_tree = none;
bool d_ran = false;

/* What a host loses when it dies: its worker's place, its programs, its tmpfs. */
mtype:at s_at = idle;
mtype:at d_at = idle;
mtype:program dump = gone;
mtype:program criu = gone;
mtype:program script = gone;
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
bool m_refuse = false;               /* to the destination: a rollback begins, because a step failed or people said so */
bool m_ask = false;                  /* to the destination: the source's reconciler asks for the verdict */
bool m_restored = false;             /* to the source: the verdict */
bool m_refused = false;              /* to the source: the verdict */
bool stream = false;                 /* the small images, on their way through the page channel */

/*
 * An operator's word that the destination is dead, kept where the destination looks before it restores. It is said of
 * a host that is off, or of one that was only cut off and had not begun to restore.
 */
bool w_dead = false;

/*
 * The destination's host died while it let the tree go. Nobody can know whether an instruction of it had run, so only an
 * operator takes the original back; until then it stays frozen, in doubt, and that is an end that is permitted.
 */
bool d_unknown = false;

bool calm = false;                   /* no fault from now on */
bool s_lost = false;                 /* the source's host died while it had the tree */
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
bool it_never_arrives = true;                 /* 9: no rule; the checker must find that it can, else all this is empty */

#define COMPLETE (d_pages && d_small)

#ifdef ONLY
#define CHECKED(rule) (rule == ONLY)
#else
#define CHECKED(rule) (rule != 9)
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
 * for ever, which the real ones can not, since they name their step.
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
        :: s_phase == unknown -> s_phase = resumed    /* so that a late message can not begin it */
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
     * The reconciler. A row has "stood still" when a clock says so, and clocks are wrong: so it may come at any time.
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
    :: atomic { dump == dumping && d_listens -> d_pages = true; dump = dumped }
    :: atomic { dump == dumping && !d_listens -> s_tree = running; dump = failed }
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
    /* The pipeline. */
    :: atomic { d_at == idle && m_destination -> take(m_destination);
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
#ifdef RESTORE_BEFORE_HELD
        criu = begun; d_at = hold_restore }
    :: atomic { d_at == hold_restore -> d_criu_held = true; d_at = await_restore }
#else
        criu = begun; d_criu_held = true; d_at = await_restore }
#endif
    :: atomic { d_at == await_restore && criu == gone -> d_at = idle;
        if
        :: d_phase == restored -> m_restored = true
        :: else -> m_refuse = true
        fi }

    /*
     * refuse: no for good, if it is not too late; else the verdict that stands. What was read may be out of date when
     * the phase is written, since CRIU's script writes too: compare-and-set decides, and nothing is killed before it.
     */
    :: atomic { d_at == idle && m_refuse -> take(m_refuse); d_asked = true; d_seen = d_phase; d_at = look }
    :: atomic { d_at == look && d_seen == restored -> m_restored = d_asked || m_restored; d_rest() }
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
        /* CRIU died just before it could say so: the tree runs, and that is all that `restored` means. */
        if
        :: d_phase == accepted -> d_phase = restored; m_restored = d_asked || m_restored
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
        d_listens = false; d_pages = false; d_small = false;
        m_refused = d_asked || m_refused;    /* the answer only when nothing of the tree is left */
        d_rest() }

    /* The source's reconciler asks. Without a verdict it gets no answer yet: that is the same as asking again. */
    :: atomic { d_at == idle && m_ask && (d_phase == unknown || d_phase == refused || d_phase == restored) ->
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
    :: atomic { d_at == idle && d_phase == refused && (d_listens || d_pages || d_small || d_tree == stuck) ->
        d_asked = false; d_at = clear_away }
    od
}

/* CRIU's restore. It asks its script whether the rebuilt tree may run; a no makes it kill the tree silently. */
active proctype restore() {
end:
    do
    :: atomic { criu == begun -> criu = building; d_tree = stuck;
#ifndef KEEP_IMAGES
        d_pages = false; d_small = false    /* `auto_dedup`: images are given up while they are read */
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

/* The action script (sojourn/commit.py): a process of its own, which may outlive the CRIU that called it. */
active proctype action_script() {
end:
    do
    :: atomic { script == accepting ->
        if
        :: d_phase == restoring -> d_phase = accepted; script = said_yes
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
    :: atomic { (script == said_yes || script == said_no) && criu != rebuilt -> script = gone }    /* nobody listens */
    od
}

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
        d_rest(); criu = gone; d_criu_held = false; script = gone;
        d_listens = false; d_pages = false; d_small = false; stream = false;
        if
        :: w_dead = true    /* and an operator says so before it is back */
        :: skip
        fi }

    /* An operator takes a destination for dead that is only cut off, or decides what nobody can know. */
    :: atomic { !w_dead && (d_phase == unknown || d_phase == reserved || d_unknown) -> w_dead = true }

    :: calm = true; break
    od;
    /* Whoever goes round for ever while this stands still is an "acceptance cycle", which the checker looks for. */
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
    :: atomic { CHECKED(4) && d_phase == restored && d_tree != running && !d_lost ->
        never_restored_and_gone = false; assert(never_restored_and_gone) }
    :: atomic { CHECKED(5) && s_phase == resumed && d_ran && !EXCUSED ->
        nothing_that_ran_is_taken_back = false; assert(nothing_that_ran_is_taken_back) }
    od
}

/* `timeout` is Promela's word for: nobody can move any more. */
active proctype in_the_end() {
end:
    atomic { timeout ->
        both_rows_are_final =
            (s_phase == unknown || s_phase == retired || s_phase == resumed) &&
            (d_phase == unknown || d_phase == restored || d_phase == refused);
        both_rows_are_final = both_rows_are_final || (IN_DOUBT && s_phase == released);
        assert(both_rows_are_final || !CHECKED(6));
        /* Exactly one, unless a host died that had the tree: the source's, or the one on which it ran by then. */
        one_runs_in_the_end = s_tree == running || d_tree == running || s_lost || d_lost_it || IN_DOUBT;
        assert(one_runs_in_the_end || !CHECKED(7));
        nothing_is_left_behind = (!s_held && s_tree != stopped) || IN_DOUBT;
        nothing_is_left_behind = nothing_is_left_behind && d_tree != stuck && dump != dumping && criu == gone;
        assert(nothing_is_left_behind || !CHECKED(8));
        it_never_arrives = !(s_phase == retired && d_phase == restored && d_tree == running);
        assert(it_never_arrives || !CHECKED(9)) }
}
