"""What CRIU's logs mean: a table from its known messages to a code, a sentence and a hint.

The messages are those of CRIU 4.2, which writes ``(seconds) [task:] Error (file:line): [part: ]message``. Each row says
in which function of CRIU's source its message is written. The first known message among a log's errors
decides. What no row knows is told in CRIU's own words, with the code
``CRIU_FAILED``. The table is documented in docs/troubleshooting.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: An error line of CRIU's log: ``(00.012345) Error (criu/files-reg.c:2031): File x has bad size``.
#: In front of it may stand which task, or which part of CRIU inside of it, says so (``pie: 4242:``, some without time).
ERROR_LINE = re.compile(r"^(?:\([\d.]+\))?\s*(?:pie:\s*)?(?:(?P<task>\d+):\s*)?(?P<error>Error \([^)]*\): .*)$")

#: Errors that every failing run has, or that even a good run has: never the cause.
NOISE = (
    "Unable to detach from",
    "Can't setup RLIMIT_NOFILE",
    "Dumping FAILED",
    "Restoring FAILED",
    "Killing processes because of failure",
)

#: Which task a dump is at; its errors seldom say it (cr-dump.c, dump_one_task).
AT_TASK = r"Dumping task \(pid: (?P<task>\d+)"

#: Which descriptor of the task a dump is at (files.c, dump_one_file).
AT_DESCRIPTOR = r"^\([\d.]+\)\s*\d+ fdinfo (?P<fd>\d+): "

#: The socket that a restore is at; CRIU names no port when it can not bind it (sk-inet.c, show_one_inet_img).
AT_SOCKET = r"Restore: family .* port (?P<port>\d+) .* src_addr (?P<address>\S+)"

SAME_FILES = "The same files must be at the same paths on both hosts: shared storage, or copy them first."
SAME_CPU = "Choose a destination whose processor has all features of the source's."
SAME_CRIU = "Install CRIU 4.2 or later, the same one, on all hosts."
OWN_PID_NAMESPACE = "Migrate to another host, or start workloads in a PID namespace: `unshare --fork --pid setsid CMD`."
MORE_PIDS = "Raise `kernel.pid_max` there, or the limit of the cgroup of Sojourn's worker."
MORE_MEMORY = "Free memory on the destination, or choose another one."
MOVE_ADDRESS = "Give the destination that address first, or let the program listen on all addresses."
SETSID = "Start it with `setsid CMD`, without a terminal, or migrate with `--shell-job`."
NO_DEVICES = "A process can not take a device along: let it close it, or start it without."
TOGETHER = "Migrate both ends in one tree, or let the program close the connection first."
NO_NAMESPACE = "Start the program without a mount namespace of its own, outside of a container."
CAPABILITIES = "Give Sojourn's worker, and so CRIU, all capabilities of root; in a container see its settings."
SEE_NETWORK = "See what the log of the other host says, and whether both hosts and the network between them are well."


@dataclass(frozen=True)
class Row:
    """A known message: ``pattern`` finds it; its named groups, and those of ``before``, fill the sentence's places.

    ``before`` finds the last line of the same task in front of it that names the thing. ``{who}`` is the process.
    A ``vague`` message decides only if no other is known. ``source`` is file and function in CRIU.
    """

    pattern: str
    code: str
    sentence: str
    hint: str
    source: str
    before: str = ""
    vague: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What a log means: a stable code, a sentence that names the thing, a hint, and the error that said it."""

    code: str
    sentence: str
    hint: str
    error: str


MESSAGES: tuple[Row, ...] = (
    Row(
        r"Can't fork for (?P<pid>\d+): File exists",
        "PID_TAKEN",
        "PID {pid} is taken on the destination.",
        OWN_PID_NAMESPACE,
        "cr-restore.c fork_with_pid",
    ),
    Row(
        r"Pid (?P<found>\d+) do not match expected (?P<pid>\d+)",
        "PID_TAKEN",
        "PID {pid} could not be had on the destination.",
        OWN_PID_NAMESPACE,
        "cr-restore.c restore_task_with_children",
    ),
    Row(
        r"Unable to create a thread: -17",
        "PID_TAKEN",
        "The PID of a thread of {who} is taken on the destination.",
        OWN_PID_NAMESPACE,
        "pie/restorer.c __export_restore_task",
    ),
    Row(
        r"Can't fork for (?P<pid>\d+): Resource temporarily unavailable",
        "PIDS_EXHAUSTED",
        "The destination has no PID left to make process {pid}.",
        MORE_PIDS,
        "cr-restore.c fork_with_pid",
    ),
    Row(
        r"Unable to create a thread: -11",
        "PIDS_EXHAUSTED",
        "The destination has no PID left for a thread of {who}.",
        MORE_PIDS,
        "pie/restorer.c __export_restore_task",
    ),
    Row(
        r"Can't fork for (?P<pid>\d+): Cannot allocate memory",
        "NO_ROOM",
        "The destination has no memory left to make process {pid}.",
        MORE_MEMORY,
        "cr-restore.c fork_with_pid",
    ),
    Row(
        r"Can't restore (?P<address>[0-9a-f]+) mapping with f+4",
        "NO_ROOM",
        "The destination has no memory left for {who}, at {address}.",
        MORE_MEMORY,
        "pie/restorer.c __export_restore_task",
    ),
    Row(
        r"Unable to reserve memory \((?P<size>\d+) bytes\): Cannot allocate memory",
        "NO_ROOM",
        "The destination has no memory left for the {size} bytes of {who}.",
        MORE_MEMORY,
        "mem.c prepare_mappings",
    ),
    Row(
        r"(?P<what>[^ :][^:]*): No space left on device",
        "NO_ROOM",
        "There is no room left for the images ({what}).",
        "Raise or remove `images_bytes`; free memory on that host.",
        "page-xfer.c write_pages_loc, image.c write_img_buf",
    ),
    Row(
        r"Can't open file (?P<path>.+?) on restore: No such file or directory",
        "FILE_MISSING",
        "The file /{path} is not on the destination.",
        SAME_FILES,
        "files-reg.c do_open_reg_noseek_flags",
    ),
    Row(
        r"Can't open file (?P<path>.+?): No such file or directory",
        "FILE_MISSING",
        "The file /{path} is not on the destination.",
        SAME_FILES,
        "files-reg.c open_path",
    ),
    Row(
        r"Can't open file (?P<path>.+?) on restore: (?P<why>.+)",
        "FILE_UNUSABLE",
        "The file /{path} can not be opened on the destination: {why}.",
        "Make it the same kind of file with the same rights on both hosts.",
        "files-reg.c do_open_reg_noseek_flags",
    ),
    Row(
        r"File (?P<path>.+) has bad size (?P<there>\d+) \(expect (?P<here>\d+)\)",
        "FILE_DIFFERS",
        "The file /{path} has {there} bytes on the destination and {here} on the source.",
        SAME_FILES,
        "files-reg.c validate_file",
    ),
    Row(
        r"File (?P<path>.+) has bad mode (?P<there>\d+) \(expect (?P<here>\d+)\)",
        "FILE_DIFFERS",
        "The file /{path} has mode {there} on the destination and {here} on the source.",
        SAME_FILES,
        "files-reg.c open_path",
    ),
    Row(
        r"File (?P<path>.+) has bad build-ID",
        "FILE_DIFFERS",
        "The file /{path} is another build on the destination.",
        "Install the same versions of programs and libraries on both hosts.",
        "files-reg.c validate_with_build_id",
    ),
    Row(
        r"Can't dump ghost file (?P<path>.+) of (?P<size>\d+) size, increase limit",
        "GHOST_TOO_LARGE",
        "{who} still uses the deleted file {path}, which has {size} bytes, more than CRIU takes along.",
        "Let the program close or restart it; after an update of libraries, restart the program.",
        "files-reg.c dump_ghost_remap",
    ),
    Row(
        r"Can't create link remap for (?P<path>.+)\. Use link-remap option",
        "FILE_DELETED",
        "{who} uses {path}, which was deleted or replaced while it has other names.",
        "Let the program close it, or restart the program: then it uses the file that is there now.",
        "files-reg.c create_link_remap",
    ),
    Row(
        r"Can't create ghost regfile: File exists",
        "GHOST_LEFT",
        "A restore whose host crashed left the file on the destination that shall stand for a deleted one of {who}.",
        "Migrate again: CRIU has removed it while it failed.",
        "files-reg.c create_ghost_dentry",
    ),
    Row(
        r"Can't link (?P<ghost>.+) -> (?P<path>.+?): (?P<why>.+)",
        "FILE_DELETED",
        "The deleted file /{path} of {who} can not be made again on the destination: {why}.",
        "Remove what lies at that path there.",
        "files-reg.c open_path, linkat_hard",
    ),
    Row(
        r"Can't bind inet socket \(id \d+\): Address already in use",
        "PORT_TAKEN",
        "Port {port} of address {address} is in use on the destination.",
        "End what listens there (`ss -lntup`), or choose another destination.",
        "sk-inet.c inet_bind",
        before=AT_SOCKET,
    ),
    Row(
        r"Can't bind inet socket \(id \d+\): Cannot assign requested address",
        "ADDRESS_MISSING",
        "The destination does not have the address {address}, to which {who} is bound with port {port}.",
        MOVE_ADDRESS,
        "sk-inet.c inet_bind",
        before=AT_SOCKET,
    ),
    Row(
        r"Can't connect inet socket back: (?P<why>.+)",
        "ADDRESS_MISSING",
        "The connection of {who} from address {address}, port {port}, can not be made again there: {why}.",
        MOVE_ADDRESS,
        "sk-inet.c inet_connect",
        before=AT_SOCKET,
    ),
    Row(
        r"couldn't find ifindex for (?P<interface>\S+)",
        "INTERFACE_MISSING",
        "The destination has no network interface {interface}, to which a socket of {who} is bound.",
        "Make an interface of that name there.",
        "sk-inet.c inet_bind",
    ),
    Row(
        r"Connected TCP socket, consider using --tcp-established option",
        "TCP_ESTABLISHED",
        "{who} has an established TCP connection: descriptor {fd}.",
        "Migrate with `--tcp-established`, and move its address along; or let it close the connection.",
        "sk-inet.c can_dump_inet_sk",
        before=AT_DESCRIPTOR,
    ),
    Row(
        r"In-flight connection \(l\) for (?P<inode>[0-9a-f]+)",
        "TCP_IN_FLIGHT",
        "{who} listens, and has not yet accepted a connection that was made (socket 0x{inode}).",
        "Try again: the program must accept it first.",
        "sk-inet.c can_dump_inet_sk",
    ),
    Row(
        r"Unsupported proto (?P<protocol>\d+) for socket (?P<inode>[0-9a-f]+)",
        "SOCKET_UNSUPPORTED",
        "{who} has a socket (0x{inode}) of protocol {protocol}, which CRIU does not know.",
        "262 is MPTCP: for Go programs set `GODEBUG=multipathtcp=0`.",
        "sk-inet.c can_dump_ipproto",
    ),
    Row(
        r"Can't dump corked dgram socket (?P<inode>[0-9a-f]+)",
        "SOCKET_UNSUPPORTED",
        "{who} is in the middle of writing a datagram (socket 0x{inode}).",
        "Try again.",
        "sk-inet.c can_dump_inet_sk",
    ),
    Row(
        r"netlink: The socket has data to read",
        "SOCKET_UNSUPPORTED",
        "{who} has not yet read what the kernel told it by a netlink socket: descriptor {fd}.",
        "Try again: the program must read it first.",
        "sk-netlink.c can_dump_netlink_sk",
        before=AT_DESCRIPTOR,
    ),
    Row(
        r"Can't get 1:16 opt: Operation not supported",
        "CRIU_VERSION",
        "CRIU before 4.2 can not dump sockets on a kernel from 6.16 on.",
        SAME_CRIU,
        "sockets.c dump_socket_opts",
    ),
    Row(
        r"Unexpected rt vDSO area bounds",
        "CRIU_VERSION",
        "This CRIU is too old for this kernel.",
        SAME_CRIU,
        "vdso.c validate_vdso_addr",
    ),
    Row(
        r"Can't set FPU registers for (?P<pid>\d+): Bad address",
        "CRIU_VERSION",
        "This CRIU is too old for this processor.",
        SAME_CRIU,
        "compel/arch/x86/src/lib/infect.c compel_set_task_ext_regs",
    ),
    Row(
        r"Not supported images version (?P<version>\d+)",
        "CRIU_VERSION",
        "The source's CRIU writes images of version {version}, which the destination's does not read.",
        SAME_CRIU,
        "image.c check_img_inventory",
    ),
    Row(
        r"Locking network failed using nftables",
        "NETWORK_LOCK",
        "The connections of {who} could not be locked with nftables.",
        "See that the kernel has nf_tables, and that CRIU was built with it.",
        "netfilter.c nftables_init_connection_lock",
    ),
    Row(
        r"External socket is used\. Consider using --ext-unix-sk option",
        "UNIX_PEER_OUTSIDE",
        "{who} has a Unix socket whose other end, {peer}, is outside of the tree.",
        TOGETHER,
        "sk-unix.c __dump_external_socket",
        before=r"Runaway socket: .* name (?P<peer>.+)",
    ),
    Row(
        r"Can't dump half of stream unix connection\. name: (?P<name>.+); peer name: (?P<peer>.+)",
        "UNIX_PEER_OUTSIDE",
        "{who} has a Unix socket whose other end, {peer}, is outside of the tree.",
        TOGETHER,
        "sk-unix.c __dump_external_socket",
    ),
    Row(
        r"Unix socket (?P<inode>\d+) with unreachable peer (?P<peer>\d+)",
        "UNIX_PEER_OUTSIDE",
        "{who} has a Unix socket ({inode}) whose other end, {peer}, is outside of the tree.",
        TOGETHER,
        "sk-unix.c dump_one_unix_fd",
    ),
    Row(
        r"unix: FATAL: Peer (?P<peer>\d+) unresolved for (?P<inode>\d+)",
        "UNIX_PEER_OUTSIDE",
        "The tree has a Unix socket ({inode}) whose other end, {peer}, is outside of it.",
        TOGETHER,
        "sk-unix.c fixup_unix_peer",
    ),
    Row(
        r"Can't bind id (?P<id>\S+) ino \d+ addr (?P<path>.+): Address already in use",
        "SOCKET_TAKEN",
        "There is a Unix socket {path} on the destination already.",
        "End what uses it there, and remove it.",
        "sk-unix.c bind_unix_sk",
    ),
    Row(
        r"A session leader of zombie process (?P<pid>\d+)",
        "ZOMBIE",
        "Process {pid} has ended, and its parent has not noticed; its session's leader is outside of the tree.",
        "Let its parent wait for it, or end the parent.",
        "cr-dump.c dump_zombies",
    ),
    Row(
        r"Zombies with threads are not supported",
        "ZOMBIE",
        "The first thread of a process of the tree has ended, and others of it run on.",
        "CRIU can not take such a process along: end it, or restart the program.",
        "seize.c collect_threads",
    ),
    Row(
        r"A session leader of (?P<pid>\d+)",
        "SHELL_JOB",
        "Process {pid} belongs to a session whose leader is outside of the tree: it was started from a shell.",
        SETSID,
        "cr-dump.c dump_one_task",
    ),
    Row(
        r"Found dangling tty with sid (?P<sid>\d+) pgid \d+ \((?P<driver>\w+)\) on peer fd (?P<fd>\d+)",
        "SHELL_JOB",
        "A process of the tree has a terminal ({driver}, descriptor {fd}) of session {sid}, which is not in the tree.",
        SETSID,
        "tty.c dump_verify_tty_sids",
    ),
    Row(
        r"tty: No task found with sid (?P<sid>\d+)",
        "SHELL_JOB",
        "A terminal belongs to session {sid}, whose leader is not in the tree.",
        SETSID,
        "tty.c tty_find_restoring_task",
    ),
    Row(
        r"tty: Don't have tty to inherit session from, aborting",
        "SHELL_JOB",
        "{who} needs a terminal, and there is none on the destination.",
        "Start it with `setsid CMD`, without a terminal.",
        "tty.c pty_open_unpaired_slave",
    ),
    Row(
        r"Some file locks are hold by dumping tasks",
        "FILE_LOCKS",
        "Process {pid} holds a lock on a file (device and inode {file}).",
        "Migrate with `--file-locks`, unless the file is on storage that both hosts share.",
        "file-lock.c dump_file_locks, note_file_lock",
        before=r"lockinfo: \S+ \S+ (?P<pid>\d+) (?P<file>\S+)",
    ),
    Row(
        r"Unresolved lock found pid (?P<pid>\d+) ino (?P<inode>\d+)",
        "FILE_LOCKS",
        "Process {pid} holds a lock on the file with inode {inode}, which CRIU can not find.",
        "Let the program unlock it before it closes or passes it on.",
        "file-lock.c dump_file_locks",
    ),
    Row(
        r"Can not set (?P<kind>flock|posix lock|ofd lock)!",
        "FILE_LOCKS",
        "A lock ({kind}) of {who} is held by somebody else on the destination.",
        "End what holds it (`lslocks`).",
        "file-lock.c restore_file_lock",
    ),
    Row(
        r"Unknown shit \d+ \(anon_inode:\[io_uring\]\)",
        "IO_URING",
        "{who} uses io_uring, which CRIU can not dump.",
        "For Node.js set `UV_USE_IO_URING=0`; else the program must do without.",
        "proc_parse.c vma_get_mapfile",
    ),
    Row(
        r"Can't dump file (?P<fd>\d+) of that type \[\d+\] \(anon anon_inode:\[io_uring\]\)",
        "IO_URING",
        "{who} uses io_uring (descriptor {fd}), which CRIU can not dump.",
        "For Node.js set `UV_USE_IO_URING=0`; else the program must do without.",
        "files-ext.c dump_unsupp_fd",
    ),
    Row(
        r"Can't dump file (?P<fd>\d+) of that type \[\d+\] \(chr (?P<device>\d+:\d+)\)",
        "DEVICE",
        "{who} has a device open: descriptor {fd}, character device {device}.",
        NO_DEVICES,
        "files-ext.c dump_unsupp_fd",
    ),
    Row(
        r"Can't handle non-regular mapping on (?P<pid>\d+)'s map (?P<address>[0-9a-f]+)",
        "DEVICE",
        "Process {pid} has a device in its memory, at {address}.",
        NO_DEVICES,
        "proc_parse.c handle_vma",
    ),
    Row(
        r"Can't dump file (?P<fd>\d+) of that type \[\d+\] \((?P<kind>.+)\)",
        "FILE_UNSUPPORTED",
        "{who} has something open that CRIU does not know: descriptor {fd}, {kind}.",
        "Let the program close it, or start it without.",
        "files-ext.c dump_unsupp_fd",
    ),
    Row(
        r"Unknown shit \d+ \((?P<kind>.+)\)",
        "FILE_UNSUPPORTED",
        "{who} has something in its memory that CRIU does not know: {kind}.",
        "Let the program close it, or start it without.",
        "proc_parse.c vma_get_mapfile",
    ),
    Row(
        r"Task (?P<pid>\d+) with SysVIPC shmem map @(?P<address>[0-9a-f]+) doesn't live in IPC ns",
        "SYSV_SHM",
        "Process {pid} uses System V shared memory of its host, at {address}.",
        "Start it with `unshare -i`; PostgreSQL: `shared_memory_type=mmap`.",
        "cr-dump.c check_sysvipc_map_dump",
    ),
    Row(
        r"fsnotify: \s*Can't dump that handle",
        "INOTIFY",
        "{who} watches a file with inotify or fanotify that CRIU can not find (device and inode {handle}).",
        "Watches on an overlay can not be migrated with this CRIU: let the program do without.",
        "fsnotify.c check_open_handle",
        before=r"Handle (?P<handle>\S+) cannot be opened",
    ),
    Row(
        r"pidfd pid (?P<pid>\d+) is not a part of process tree",
        "PIDFD_OUTSIDE",
        "{who} has a pidfd of process {pid}, which is outside of the tree: descriptor {fd}.",
        "Migrate a tree that has both, or let the program close it.",
        "pidfd.c dump_one_pidfd",
        before=AT_DESCRIPTOR,
    ),
    Row(
        r"Escaped/closed fd descriptor (?P<fd>\d+) on pid (?P<pid>\d+)",
        "EPOLL_CLOSED_FD",
        "Process {pid} waits by epoll for descriptor {fd}, which it has closed while a copy of it is open elsewhere.",
        "The program must remove it from the epoll set first.",
        "eventpoll.c dump_one_eventpoll",
    ),
    Row(
        r"Unseizable non-zombie (?P<pid>\d+) found",
        "TRACED",
        "Process {pid} can not be traced: a debugger or strace holds it, or it is protected.",
        "End the tracer; CRIU must be the only one.",
        "compel/src/lib/infect.c compel_wait_task",
    ),
    Row(
        r"Can't dump the (?P<pid>\d+) thread with a pending SIGTRAP",
        "TRACED",
        "Thread {pid} stands at a debugger's breakpoint.",
        "End the debugger.",
        "compel/src/lib/infect.c compel_wait_task",
    ),
    Row(
        r"The criu itself is within dumped tree",
        "OWN_TREE",
        "The tree holds CRIU itself.",
        "Migrate a process below that one.",
        "compel/src/lib/infect.c compel_wait_task",
    ),
    Row(
        r"A root task is dead",
        "PROCESS_GONE",
        "The process ended before it was frozen.",
        "Look again with `sojourn ps`.",
        "cr-dump.c dump_zombies",
    ),
    Row(
        r"Individually stopped threads not supported",
        "THREAD_STOPPED",
        "Single threads of a process of the tree are stopped.",
        "Let the whole process run, or stop the whole of it.",
        "seize.c collect_threads",
    ),
    Row(
        r"Timeout reached\. Try to interrupt",
        "FREEZE_TIMED_OUT",
        "The tree could not be stopped in time: a process of it waits in the kernel, perhaps for storage.",
        "See which: `ps -eo pid,stat,wchan,args`, state D.",
        "cr-dump.c alarm_handler",
    ),
    Row(
        r"Can't dump task (?P<pid>\d+) running in 32-bit mode",
        "PROGRAM_32_BIT",
        "Process {pid} is a 32-bit program, and this CRIU was built without support for them.",
        "Use a CRIU that was built with CONFIG_COMPAT.",
        "compel/arch/x86/src/lib/infect.c arch_can_dump_task",
    ),
    Row(
        r"CPU instruction capabilities do not match run time",
        "CPU_FLAGS",
        "The destination's processor lacks instructions that the source's has.",
        SAME_CPU,
        "arch/x86/cpu.c cpu_validate_ins_features",
    ),
    Row(
        r"FPU feature required by image is not supported on host",
        "CPU_FLAGS",
        "The destination's processor can not hold the floating-point state of the source's.",
        SAME_CPU,
        "arch/x86/cpu.c cpu_validate_features",
    ),
    Row(
        r"CPU xfeatures has unsupported bits \((?P<bits>\w+)\)",
        "CPU_FLAGS",
        "The destination's processor lacks register sets that the source's has (xfeatures {bits}).",
        SAME_CPU,
        "arch/x86/cpu.c cpu_validate_features",
    ),
    Row(
        r"CPU xsave size mismatch \((?P<here>\d+)/(?P<there>\d+)\)",
        "CPU_FLAGS",
        "The processors' register sets differ in size: {here} bytes on the source, {there} on the destination.",
        SAME_CPU,
        "arch/x86/cpu.c cpu_validate_features",
    ),
    Row(
        r"Can't get rlimit \d+: Operation not permitted",
        "PRIVILEGES",
        "CRIU may not read the limits of {who}: root lacks CAP_SYS_RESOURCE.",
        CAPABILITIES,
        "cr-dump.c dump_task_rlimits",
    ),
    Row(
        r"Failed to write (?P<pid>\d+) to /proc/(?P<file>\S+): (?P<why>.+)",
        "PRIVILEGES",
        "CRIU may not choose PID {pid}: writing to /proc/{file} fails: {why}.",
        CAPABILITIES,
        "cr-restore.c set_next_pid",
    ),
    Row(
        r"Can't open map_files: (?P<why>.+)",
        "PRIVILEGES",
        "CRIU may not look at the mapped files of {who}: {why}.",
        CAPABILITIES,
        "proc_parse.c vma_get_mapfile",
    ),
    Row(
        r"Can't dump nested (?P<kind>\w+) namespace for (?P<pid>\d+)",
        "NAMESPACE",
        "Process {pid} lives in a {kind} namespace of its own inside of the tree.",
        NO_NAMESPACE,
        "namespaces.c generate_ns_id",
    ),
    Row(
        r"The --root option is required to restore a mount namespace",
        "NAMESPACE",
        "The tree has a mount namespace of its own.",
        NO_NAMESPACE,
        "mount.c do_mount_one",
    ),
    Row(
        r"Mount (?P<mount>\d+):(?P<path>\S+) is autodetected external mount",
        "NAMESPACE",
        "The tree has a mount namespace of its own, with a mount from outside at {path}.",
        NO_NAMESPACE,
        "mount.c get_mp_root",
    ),
    Row(
        r"No parent found for mountpoint (?P<mount>\d+) \(@(?P<path>\S+)\)",
        "NAMESPACE",
        "The mount {path} has no parent: Sojourn's worker or the tree runs in a chroot.",
        "CRIU needs a mount namespace with pivot_root instead of a chroot.",
        "mount.c mnt_build_ids_tree",
    ),
    Row(
        r"Can't lookup mount=(?P<mount>-?\d+) for fd=(?P<fd>-?\d+) path=(?P<path>.+)",
        "MOUNT_OUTSIDE",
        "{who} has {path} open (descriptor {fd}) on a mount that is not there any more, or is another namespace's.",
        "Let the program close it, or start it outside of a container.",
        "files-reg.c dump_one_reg_file",
    ),
    Row(
        r"PID (?P<pid>\d+) has uprobes vma",
        "TRACED",
        "Process {pid} is watched with uprobes, by perf or bpftrace perhaps.",
        "End what watches it.",
        "proc_parse.c handle_vma",
    ),
    Row(
        r"The packetized mode for pipes is not supported yet",
        "FILE_UNSUPPORTED",
        "{who} has a pipe in packet mode (O_DIRECT), which CRIU does not know: descriptor {fd}.",
        "Let the program close it, or start it without.",
        "pipes.c dump_one_pipe",
        before=AT_DESCRIPTOR,
    ),
    Row(
        r"Aborting restore due to post-restore script ret code (?P<status>-?\d+)",
        "COMMIT_REFUSED",
        "The tree was rebuilt, but the destination's journal no longer accepted it, so it was given up.",
        "It was aborted or settled meanwhile, or the journal could not be written: see `restore.out`.",
        "cr-restore.c restore_root_task",
    ),
    Row(
        r"Unexpected EOF on (?P<image>\S+)",
        "IMAGES_INCOMPLETE",
        "The image {image} is empty or cut short.",
        "Migrate again.",
        "protobuf.c do_pb_read_one",
    ),
    Row(
        r"Magic doesn't match for (?P<image>\S+)",
        "IMAGES_INCOMPLETE",
        "The image {image} is not what it should be.",
        "Migrate again, with the same CRIU on both hosts.",
        "image.c img_check_magic",
    ),
    Row(
        r"Can't write pages to socket: (?P<why>.+)",
        "CHANNEL_FAILED",
        "The connection that carries the memory broke: {why}.",
        SEE_NETWORK,
        "page-xfer.c write_pages_to_server",
    ),
    Row(
        r"Can't send PSI \d+ to server: (?P<why>.+)",
        "CHANNEL_FAILED",
        "The connection that carries the memory broke: {why}.",
        SEE_NETWORK,
        "page-xfer.c send_psi_flags",
    ),
    Row(
        r"The page server doesn't answer: (?P<why>.+)",
        "CHANNEL_FAILED",
        "The destination's page server did not answer: {why}.",
        SEE_NETWORK,
        "page-xfer.c open_page_server_xfer, check_parent_server_xfer",
    ),
    Row(
        r"page-xfer: Can't read pagemap from socket: (?P<why>.+)",
        "CHANNEL_FAILED",
        "The connection that carries the memory broke: {why}.",
        SEE_NETWORK,
        "page-xfer.c page_server_serve",
    ),
    Row(
        r"Diag module missing \((?P<error>-?\d+)\)",
        "KERNEL_MODULE",
        "The kernel lacks a module by which CRIU finds sockets.",
        "`modprobe -a unix_diag inet_diag tcp_diag udp_diag netlink_diag af_packet_diag` on both hosts.",
        "sockets.c probe_err",
        vague=True,
    ),
    Row(
        r"Error \([^)]*\): (?P<pid>\d+) killed by signal (?P<signal>\d+)",
        "RESTORE_KILLED",
        "Process {pid} was killed by signal {signal} while it was being rebuilt.",
        "9 may be the kernel, for want of memory, or an operator: see `dmesg`. 11 is a defect of CRIU.",
        "cr-restore.c sigchld_process",
        vague=True,
    ),
)


def errors(log: str) -> list[str]:
    """Return all errors of a log in their order, without the noise."""
    return [match["error"] for _, match in _found(log.splitlines())]


def diagnose(log: str) -> Diagnosis | None:
    """Return what the first known error of a log means; None if no error of it is known."""
    lines = log.splitlines()
    found = _found(lines)
    for vague in (False, True):
        rows = [row for row in MESSAGES if row.vague is vague]
        for index, match in found:
            for row in rows:
                if known := re.search(row.pattern, match["error"]):
                    return _filled(row, match, known, lines[:index])
    return None


def _found(lines: Sequence[str]) -> list[tuple[int, re.Match[str]]]:
    """Return where the errors are, and their parts."""
    matches = ((index, ERROR_LINE.match(line)) for index, line in enumerate(lines))
    return [(index, match) for index, match in matches if match and not any(word in match["error"] for word in NOISE)]


def _filled(row: Row, match: re.Match[str], known: re.Match[str], earlier: Sequence[str]) -> Diagnosis:
    """Fill the places of a row's sentence from its message and from what the log said before."""
    of_task = [line for line in earlier if not match["task"] or f" {match['task']}: " in line]
    said = _last(row.before, of_task) if row.before else {}
    task = match["task"] or _last(AT_TASK, earlier).get("task")
    names = _Names(said | known.groupdict() | {"who": f"process {task}" if task else "a process of the tree"})
    sentence = row.sentence.format_map(names)
    return Diagnosis(row.code, sentence[0].upper() + sentence[1:], row.hint, match["error"])


def _last(pattern: str, lines: Sequence[str]) -> dict[str, str]:
    """Return the named groups of the last line that matches; none if there is no such line."""
    matches = (re.search(pattern, line) for line in reversed(lines))
    return next((match.groupdict() for match in matches if match), {})


class _Names(dict[str, str]):
    """Names of things; one that the log did not say is said to be unknown."""

    def __missing__(self, key: str) -> str:
        return f"(unknown {key})"
