"""Programs with a terminal."""

from __future__ import annotations

from tests.programs.program import Program, Way
from tests.programs.starts import Forking, InTmux, ShellJob

JOB = "pgrep -P $(pgrep -f '^bash --norc -i') -x {name}"

#: Directories that a host has as soon as anybody there has used the program.
TMUX = "install -d -m 700 /tmp/tmux-0"

#: What is on the screen of the window.
SCREEN = "tmux capture-pane -p"

PROGRAMS = [
    Program(
        "vim",
        ("vim-tiny",),
        ShellJob("vim.tiny $D/text", JOB.format(name="vim.tiny")),
        prepare="echo text >$D/text",
        works="kill -0 $(pgrep -x vim.tiny)",
        refused=("SHELL_JOB", "HELD_OUTSIDE"),
        way=Way("in tmux instead", beta=TMUX, start=InTmux("vim.tiny $D/text")),
    ),
    Program(
        "less",
        ("less",),
        ShellJob("less /etc/services", JOB.format(name="less")),
        works="kill -0 $(pgrep -x less)",
        refused=("SHELL_JOB", "HELD_OUTSIDE"),
    ),
    Program(
        "tmux, with a shell",
        ("tmux",),
        InTmux("bash --norc"),
        both=TMUX,
        works=f"tmux send-keys 'echo $((6 * 7))' Enter && sleep 0.5 && {SCREEN} | grep -q '^42'",
        fill="tmux send-keys 'remembered=value' Enter; sleep 0.3",
        state="tmux send-keys clear Enter; sleep 0.3; "
        "tmux send-keys 'echo $remembered' Enter; sleep 0.5; "
        f"{SCREEN} | grep value",
    ),
    Program(
        "vim, with a text that is not saved",
        ("vim-tiny", "tmux"),
        InTmux("vim.tiny $D/text"),
        both=TMUX,
        works="pgrep -x vim.tiny && tmux display-message -p x",
        fill="tmux send-keys iunsaved Escape; sleep 1",
        state=f"{SCREEN} | grep unsaved",
    ),
    Program(
        "Python, asked for the next line",
        ("python3", "tmux"),
        InTmux("python3"),
        both=TMUX,
        works="pgrep -x python3 && tmux display-message -p x",
        fill="tmux send-keys 'remembered = 6 * 7' Enter; sleep 0.5",
        state=f"tmux send-keys 'print(remembered)' Enter; sleep 0.7; {SCREEN} | grep -x -m 1 42",
    ),
    Program(
        "bc",
        ("bc", "tmux"),
        InTmux("bc -q"),
        both=TMUX,
        works="pgrep -x bc && tmux display-message -p x",
        fill="tmux send-keys 'remembered = 6 * 7' Enter; sleep 0.5",
        state=f"tmux send-keys 'remembered' Enter; sleep 0.5; {SCREEN} | grep -x -m 1 42",
    ),
    Program(
        "GNU Screen, with a shell",
        ("screen",),
        Forking("screen -dmS test bash --norc", "pgrep -o -x SCREEN || pgrep -o -x screen"),
        both="install -d -m 777 /run/screen; install -d -m 700 /run/screen/S-root",
        works="screen -S test -X stuff 'echo $((6*7)) >$D/answer\n' && sleep 0.5 && "
        "grep -q 42 $D/answer && rm $D/answer",
        fill="screen -S test -X stuff 'remembered=value\n'; sleep 0.3",
        state="screen -S test -X stuff 'echo \\$remembered >$D/state\n'; sleep 0.5; cat $D/state",
    ),
]
