"""Which system calls a sandbox may make.

Allowed are the calls of `ALLOWED`, and those of `seccomp.CHECKS` with the arguments that are checked there. Of the
others

- those in `REFUSED` fail with EPERM. They are acts of an administrator: the kernel gives the same answer to a caller
  without capabilities, so programs know it.
- every other one fails with ENOSYS, as on an older kernel, whether we know its name or not. Programs
  meet that with what they did before the call existed: `clone` for `clone3`, which hides its flags in memory where
  no filter can look, `epoll` for `io_uring`, another place for what they would keep in a kernel keyring, threads for
  `io_setup`, whose contexts one sandbox could take from the whole machine (fs.aio-max-nr).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ALLOWED_BY_SUBJECT: Mapping[str, str] = MappingProxyType(
    {
        "reading, writing and positions": """
            read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee vmsplice
            copy_file_range readahead fadvise64 fsync fdatasync sync syncfs sync_file_range truncate ftruncate fallocate
        """,
        "files and directories": """
            open openat openat2 creat close close_range stat fstat lstat newfstatat statx statfs fstatfs access
            faccessat faccessat2 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2
            link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown
            fchown lchown fchownat umask utime utimes utimensat futimesat flock dup dup2 dup3
            setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
            removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat
            inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
        """,
        "memory": """
            munmap mprotect mremap brk madvise msync mincore mlock mlock2 munlock mlockall munlockall membarrier
            pkey_alloc pkey_free pkey_mprotect mseal map_shadow_stack
        """,
        "processes and threads": """
            fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid setpgid getpgrp
            getsid setsid set_tid_address set_robust_list get_robust_list rseq futex futex_waitv futex_wake
            futex_wait futex_requeue arch_prctl prctl restart_syscall pidfd_open pidfd_send_signal
        """,
        "scheduling and limits": """
            sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
            sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr
            sched_setattr getpriority setpriority ioprio_get ioprio_set getcpu getrusage times getrlimit setrlimit
            prlimit64 sysinfo uname
        """,
        "signals": """
            kill tkill tgkill pause rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
            rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack signalfd signalfd4
        """,
        "identity, which has nothing to gain without capabilities": """
            getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid
            setresgid setfsuid setfsgid setgroups capget capset
        """,
        "further walls, which can only add to these": """
            seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
        """,
        "waiting and time": """
            select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
            eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime timer_create timer_settime timer_gettime
            timer_getoverrun timer_delete alarm getitimer setitimer nanosleep clock_nanosleep clock_gettime
            clock_getres gettimeofday time getrandom
        """,
        "talking to each other": """
            pipe pipe2 bind connect listen accept accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg
            sendmmsg recvmmsg shutdown getsockopt shmat shmctl shmdt semget semop semtimedop semctl
            msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
        """,
    }
)

_REFUSED_BY_SUBJECT: Mapping[str, str] = MappingProxyType(
    {
        "mounts and roots": """
            mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick
            mount_setattr
        """,
        "other namespaces": "unshare setns",
        "other processes": "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp",
        "kernel code and its inside": """
            bpf perf_event_open init_module finit_module delete_module kexec_load kexec_file_load syslog lookup_dcookie
        """,
        "the machine": """
            reboot swapon swapoff sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex acct
            quotactl quotactl_fd vhangup iopl ioperm
        """,
        "files past their paths": "open_by_handle_at fanotify_init fanotify_mark",
    }
)

ALLOWED = frozenset(" ".join(_ALLOWED_BY_SUBJECT.values()).split())
"""Names of the calls that are allowed whatever their arguments."""

REFUSED = frozenset(" ".join(_REFUSED_BY_SUBJECT.values()).split())
"""Names of the calls that fail with EPERM."""
