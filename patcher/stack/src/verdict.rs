//! The verdict on a walked stack.

use crate::searched::{Kind, RawScan, Searched};
use std::fmt;
use suture_unwind::{Bottom, FrameKind, Unreliable, Walk};

/// Whether a thread may be switched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No searched code is live on its whole stack. What the stack stands on, if it was walked.
    Clear(Option<Bottom>),
    /// Searched code is.
    OnStack {
        /// The caller's number for the function.
        function: u32,
        /// What of the function.
        kind: Kind,
        /// Index of the frame, the innermost being 0.
        frame: usize,
        /// The frame's program counter or return address.
        pc: u64,
    },
    /// The stack is walked and clear, but it is not the thread's own: it runs a coroutine, or it ends
    /// where nothing is known. What is live on its own stack is not known.
    NotItsOwnStack(Bottom),
    /// The stack is walked and clear, but the stack of a suspended coroutine seems to lie in one of its
    /// frames, and a word on it returns into searched code.
    HiddenStack {
        /// Address of the word.
        at: u64,
    },
    /// The stack cannot be walked to its end.
    Unreliable(Unreliable),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(_) => f.write_str("clear"),
            Self::OnStack { function, frame, pc, .. } => {
                write!(f, "function {function} is on the stack (frame {frame}, at {pc:#x})")
            }
            Self::NotItsOwnStack(Bottom::Context) => {
                f.write_str("it runs a coroutine, and its own stack is not seen")
            }
            Self::NotItsOwnStack(_) => f.write_str("its stack ends at an unknown place"),
            Self::HiddenStack { at } => {
                write!(
                    f,
                    "a suspended coroutine on its stack seems to be inside a function (word at {at:#x})"
                )
            }
            Self::Unreliable(why) => write!(f, "unreliable: {why}"),
        }
    }
}

/// Decides on a thread: by the scan if that is clean, else by the walk that `walk` makes now.
///
/// A clear walk makes every hit of the scan a stale word, with one exception. The stack of a coroutine may
/// be an array in a frame of this thread: no walk from the thread's registers passes its frames, but the
/// scan does. What functions of `makecontext` return to lies on such a stack; if the scan met that, and
/// words that return into searched code too, those may be live.
#[must_use]
pub fn decide(
    scan: &RawScan,
    searched: &Searched,
    walk: impl FnOnce() -> Result<Walk, Unreliable>,
) -> Verdict {
    if scan.is_clean() {
        return Verdict::Clear(None);
    }
    let verdict = examine(walk().as_ref(), searched);
    match (&verdict, scan.context, scan.searched) {
        (Verdict::Clear(_), Some(_), Some(at)) => Verdict::HiddenStack { at },
        _ => verdict,
    }
}

/// Decides on a walk alone.
///
/// Frames that were left by a call are compared by their return address, the innermost one and those
/// that a signal interrupted by their exact program counter (the rules are those of [`Searched`]). Found
/// code counts whichever stack it is on; a clear stack only if it is the thread's own, from its start.
#[must_use]
pub fn examine(walk: Result<&Walk, &Unreliable>, searched: &Searched) -> Verdict {
    let walk = match walk {
        Ok(walk) => walk,
        Err(why) => return Verdict::Unreliable(why.clone()),
    };
    for (index, frame) in walk.frames.iter().enumerate() {
        let found = match frame.kind {
            FrameKind::Caller => searched.return_address(frame.pc),
            FrameKind::Innermost | FrameKind::Interrupted => searched.pc(frame.pc),
        };
        if let Some(found) = found {
            let (function, kind) = (found.function, found.kind);
            return Verdict::OnStack { function, kind, frame: index, pc: frame.pc };
        }
    }
    match walk.bottom {
        own @ (Bottom::ProcessStart | Bottom::ThreadStart) => Verdict::Clear(Some(own)),
        other => Verdict::NotItsOwnStack(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SearchedBuilder;
    use suture_unwind::Frame;

    fn frame(pc: u64, kind: FrameKind) -> Frame {
        Frame { pc, cfa: 0, kind, trampoline: false, module: 0, by_height: false }
    }

    fn verdict(frames: &[(u64, FrameKind)], bottom: Bottom) -> Verdict {
        let mut builder = SearchedBuilder::new();
        builder.add(4, Kind::Original, 0x100..0x200);
        builder.add(4, Kind::New, 0x900..0x980);
        builder.add(0, Kind::SignalReturn, 0x700..0x710);
        let frames = frames.iter().map(|(pc, kind)| frame(*pc, *kind)).collect();
        examine(Ok(&Walk { frames, bottom }), &builder.build())
    }

    #[test]
    fn frames_are_compared_by_what_they_are() {
        use FrameKind::{Caller, Innermost, Interrupted};
        let clear = Verdict::Clear(Some(Bottom::ThreadStart));
        for (pc, kind, inside) in [
            (0x100, Innermost, false),
            (0x100, Interrupted, false),
            (0x100, Caller, false),
            (0x101, Innermost, true),
            (0x200, Innermost, false),
            (0x200, Interrupted, false),
            (0x200, Caller, true),
            (0x900, Caller, false),
            (0x900, Innermost, true),
            (0x900, Interrupted, true),
            (0x980, Interrupted, false),
            (0x980, Caller, true),
            (0x708, Caller, false),
        ] {
            let found = verdict(&[(0x10, Innermost), (pc, kind), (0x20, Caller)], Bottom::ThreadStart);
            assert_eq!(found == clear, !inside, "{pc:#x} {kind:?}: {found}");
            if let Verdict::OnStack { function, frame, pc: at, .. } = found {
                assert_eq!((function, frame, at), (4, 1, pc));
            }
        }
    }

    #[test]
    fn only_a_threads_own_stack_is_clear() {
        let plain = [(0x10, FrameKind::Innermost)];
        assert_eq!(verdict(&plain, Bottom::ProcessStart), Verdict::Clear(Some(Bottom::ProcessStart)));
        for bottom in [Bottom::Context, Bottom::Unknown { pc: 5 }] {
            assert_eq!(verdict(&plain, bottom), Verdict::NotItsOwnStack(bottom));
            let live = [(0x10, FrameKind::Innermost), (0x150, FrameKind::Caller)];
            assert!(matches!(verdict(&live, bottom), Verdict::OnStack { .. }), "found is found");
        }
        let why = Unreliable::NoModule { pc: 3 };
        assert_eq!(examine(Err(&why), &Searched::default()), Verdict::Unreliable(why));
    }
}
