//! What becomes of a call in which the borrowed thread waits. Each process here has one thread, or one that
//! will be borrowed before all others, so the stops meet that very call.

use std::time::{Duration, Instant};
use suture_tests::command::{disable, suture};
use suture_tests::lab::replacing;
use suture_tests::target::Options;
use suture_tests::{Lab, Target, poll, repeat, report};

/// The time-out of every wait.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// How far it is over when the process is entered: a call that began again would end that much too late.
const OVER: Duration = Duration::from_millis(500);
/// Later than this is too late, on a machine that others use as well.
const LATE: Duration = Duration::from_millis(300);

/// How a wait ends: result, errno, and what is known of its time.
#[derive(Clone, Copy)]
enum Ends {
    /// By its time-out, with this errno (0: result 0).
    InTime(i64),
    /// When something comes: result and errno.
    Sent(i64, i64),
}

const KINDS: [(&str, Ends); 19] = [
    ("nanosleep", Ends::InTime(0)),
    ("clock_nanosleep", Ends::InTime(0)),
    ("poll", Ends::InTime(0)),
    ("select", Ends::InTime(0)),
    ("epoll_wait", Ends::InTime(0)),
    ("epoll_pwait2", Ends::InTime(0)),
    ("futex", Ends::InTime(libc::ETIMEDOUT as i64)),
    ("futex_absolute", Ends::InTime(libc::ETIMEDOUT as i64)),
    ("sem_timedwait", Ends::InTime(libc::ETIMEDOUT as i64)),
    ("recv", Ends::InTime(libc::EAGAIN as i64)),
    ("recv_sent", Ends::Sent(1, 0)),
    // A socket with a time-out is not restarted, whatever the handler's flags say.
    ("recv_signal", Ends::Sent(-1, libc::EINTR as i64)),
    ("send", Ends::InTime(libc::EAGAIN as i64)),
    ("accept", Ends::InTime(libc::EAGAIN as i64)),
    ("connect", Ends::InTime(libc::EINPROGRESS as i64)),
    ("sigtimedwait", Ends::InTime(libc::EAGAIN as i64)),
    ("semtimedop", Ends::InTime(libc::EAGAIN as i64)),
    ("msgrcv", Ends::Sent(0, 0)),
    ("read", Ends::Sent(1, 0)),
];

/// Holds the thread through an injection, an apply and a disable. Gives how late the wait ended; `None` when
/// the machine was too slow for the wait to be over after all that.
fn hold(lab: &Lab, kind: &str, ends: Ends, preload: bool) -> Option<Duration> {
    let (program, patch) = (lab.path("waits"), lab.path("fix.so"));
    let mut target = Target::start(&program, &[], Options { preload, ..Options::default() });
    let pid = target.pid();
    let call = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let in_read = call();
    assert_eq!(target.ask(&format!("wait {kind} {}", TIMEOUT.as_millis())), "waiting");
    let begun = Instant::now();
    poll::until_true("the wait", || call() != in_read && !call().starts_with("running"));
    while begun.elapsed() < OVER {
        std::thread::park_timeout(OVER - begun.elapsed());
    }
    suture(&["inject", "--pid", &pid.to_string()]).expect(0);
    report::apply(&patch, pid)["stops"].as_i64().filter(|n| *n == 1).expect("one thread, one stop");
    disable("fix", pid).expect(0);
    let last_stop = begun.elapsed();
    if let Ends::Sent(..) = ends {
        target.tell("come");
    }
    let said = target.line();
    let number = |word| Target::number(&said, word);
    if last_stop > TIMEOUT - Duration::from_millis(200) {
        return None;
    }
    let took = Duration::from_micros(number("took").unsigned_abs());
    let (result, errno) = match ends {
        Ends::Sent(result, errno) => {
            assert_eq!((number("result"), number("errno")), (result, errno), "{said}");
            assert_eq!(target.call(1), 2);
            return Some(Duration::ZERO);
        }
        Ends::InTime(errno) => (if errno == 0 { 0 } else { -1 }, errno),
    };
    assert_eq!((number("result"), number("errno")), (result, errno), "{said}");
    assert!(took >= TIMEOUT, "too early: {said}");
    assert!(took < TIMEOUT + LATE, "too late: {said}");
    assert_eq!(target.call(1), 2);
    Some(took - TIMEOUT)
}

/// Holds a wait until the machine was fast enough for it, and says how late it ended at most.
fn hold_in_time(lab: &Lab, kind: &str, ends: Ends, preload: bool) {
    let mut late: Vec<Duration> = Vec::new();
    // A slow machine gets further chances, a wrong end none.
    for _ in 0..repeat(4, 20) {
        late.extend(hold(lab, kind, ends, preload));
        if late.len() == repeat(1, 10) {
            break;
        }
    }
    let most = late.iter().max().unwrap_or_else(|| panic!("{kind}: the machine is too slow"));
    println!("{kind:16} preloaded {preload:5}  late by at most {:8.3} ms", most.as_secs_f64() * 1e3);
}

/// All kinds, several at a time: they mostly wait.
fn hold_all(preload: bool) {
    let lab = Lab::new();
    lab.compile_target("waits.c", &[]);
    lab.value_patch("fix", 100);
    for kinds in KINDS.chunks(repeat(7, 1)) {
        std::thread::scope(|scope| {
            for &(kind, ends) in kinds {
                let lab = &lab;
                scope.spawn(move || hold_in_time(lab, kind, ends, preload));
            }
        });
    }
}

#[test]
fn no_wait_ends_early_or_with_eintr() {
    hold_all(false);
}

#[test]
fn no_wait_ends_early_or_with_eintr_where_the_runtime_was_preloaded() {
    hold_all(true);
}

/// A thread that waits for the rest of its call in an entry of ours is seen through: what called the call is
/// on its stack, and named.
#[test]
fn who_waits_for_the_rest_of_a_call_is_still_inside_its_callers() {
    let lab = Lab::new();
    lab.compile_target("waits.c", &[]);
    let patch = lab.patch("held", &replacing("held", "held", "return n + 7;"));
    for preload in [false, true] {
        let options = Options { preload, ..Options::default() };
        let mut target = Target::start(&lab.path("waits"), &[], options);
        let pid = target.pid_text();
        assert_eq!(target.ask("wait within 20000"), "waiting");
        let call = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        poll::until_true("the wait", || call().starts_with(&format!("{} ", libc::SYS_recvfrom)));
        let file = patch.to_string_lossy();
        suture(&["apply", &file, "--pid", &pid, "--timeout", "1", "--on-timeout", "leave"]).expect(3);
        assert!(call().starts_with(&format!("{} ", libc::SYS_ppoll)), "{}", call());
        let transition = report::transition(target.pid());
        let blocker = &transition["blockers"][0];
        assert_eq!((&blocker["reason"], &blocker["function"]), (&"on-stack".into(), &"held".into()));
        suture(&["reverse", "held", "--pid", &pid]).expect(0);
    }
}

/// Patches and unpatches a process whose sleeping thread is woken by signals all the time. Gives the number
/// of stops and the last answer.
fn wake_meanwhile(args: &[&str], enough: impl Fn(&str, i64) -> bool) -> (i64, String) {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("wakeups.c", args, Options { preload: false, ..Options::default() });
    let mut rings = 0;
    loop {
        let applied = report::apply(&patch, target.pid());
        let disabled = report::disable("fix", target.pid());
        rings += applied["stops"].as_i64().unwrap_or(0) + disabled["stops"].as_i64().unwrap_or(0);
        let answer = target.ask("sent");
        assert_eq!(Target::number(&answer, "spurious"), 0, "{answer}");
        if enough(&answer, rings) {
            println!("{answer}, {rings} stops");
            return (rings, answer);
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    let wanted = i64::try_from(repeat(3000, 15_000)).expect("a small number");
    wake_meanwhile(&[], |answer, rings| {
        assert_eq!(Target::number(answer, "lost"), 0, "{answer}");
        Target::number(answer, "sent") >= wanted && rings > 20
    });
}

#[test]
fn a_signal_that_comes_meanwhile_ends_the_call() {
    let wanted = i64::try_from(repeat(100, 2000)).expect("a small number");
    let (rings, answer) = wake_meanwhile(&["plain"], |_, rings| rings >= wanted);
    // Some stops in a hundred meet a signal. One that comes right before the call is lost without us, too.
    assert!(Target::number(&answer, "lost") * 50 < rings, "{answer}, {rings} stops");
}
