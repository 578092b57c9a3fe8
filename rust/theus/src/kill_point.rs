//! Named steps after which the tests have a process killed.
//!
//! Every step that changes what others can see passes one. They are compiled in only with the feature
//! `kill-points`; without it `KillPoint::pass` is nothing.

macro_rules! kill_points {
    ($($point:ident $name:literal,)*) => {
        /// A step that has just been taken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum KillPoint {
            $(#[doc = concat!("`", $name, "`")] $point,)*
        }

        impl KillPoint {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// What it is called.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

kill_points! {
    TrialLinked "trial.linked",
    LockCreated "lock.created",
    LockLocked "lock.locked",
    LockLinked "lock.linked",
    CatalogPrepared "catalog.prepared",
    CatalogLinked "catalog.linked",
    CatalogGrown "catalog.grown",
    CatalogSlotOpened "catalog.slot-opened",
    CatalogSlotClosed "catalog.slot-closed",
    CatalogVersionSet "catalog.version-set",
    BudgetReserved "budget.reserved",
    BudgetReleased "budget.released",
    BudgetTakenOver "budget.taken-over",
    DraftCreated "draft.created",
    DraftReserved "draft.reserved",
    DraftMapped "draft.mapped",
    DraftWritten "draft.written",
    DraftResized "draft.resized",
    DraftSpilled "draft.spilled",
    DraftSealed "draft.sealed",
    SegmentNamed "segment.named",
    SegmentLinked "segment.linked",
    SegmentPublished "segment.published",
    SegmentUnlinked "segment.unlinked",
    OutputClosed "output.closed",
    OutputReceived "output.received",
    OutputProven "output.proven",
    OutputLinked "output.linked",
    TransientReserved "transient.reserved",
    TransientFilled "transient.filled",
    ChannelMade "channel.made",
    ControlMade "control.made",
    WatchStarted "watch.started",
    FrameSent "frame.sent",
    FrameReceived "frame.received",
    SpareHidden "spare.hidden",
    SpareLeased "spare.leased",
    SpareResized "spare.resized",
    SpareFaulted "spare.faulted",
    SpareSettled "spare.settled",
    SpareReleased "spare.released",
    SpareRemoved "spare.removed",
    CloseSegmentsGone "close.segments-gone",
    CloseCatalogGone "close.catalog-gone",
    CloseLockGone "close.lock-gone",
    SweepLocked "sweep.locked",
    SweepNameRemoved "sweep.name-removed",
    SweepLockRemoved "sweep.lock-removed",
}

impl KillPoint {
    /// Says that the step has been taken; this call does not return if a test wants the process
    /// killed here.
    #[inline]
    #[cfg_attr(
        not(feature = "kill-points"),
        expect(clippy::unused_self, reason = "nothing is looked at outside tests")
    )]
    pub(crate) fn pass(self) {
        #[cfg(feature = "kill-points")]
        armed::pass(self);
    }
}

#[cfg(feature = "kill-points")]
pub use armed::{arm, hits};

#[cfg(feature = "kill-points")]
mod armed {
    use std::sync::Once;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::KillPoint;

    const POINTS: usize = KillPoint::ALL.len();
    const VARIABLE: &str = "THEUS_KILL_POINT";

    static HITS: [AtomicU64; POINTS] = [const { AtomicU64::new(0) }; POINTS];
    static FATAL: [AtomicU64; POINTS] = [const { AtomicU64::new(0) }; POINTS];
    static READ_VARIABLE: Once = Once::new();

    /// Has this process killed when the point of this name is passed for the `hit`th time from now
    /// on, and at no other; false if there is no such point. The variable `THEUS_KILL_POINT`,
    /// `<name>:<hit>`, does the same for a process from its start.
    pub fn arm(name: &str, hit: u64) -> bool {
        READ_VARIABLE.call_once(|| {});
        set(name, hit)
    }

    fn set(name: &str, hit: u64) -> bool {
        let found = KillPoint::ALL.iter().find(|point| point.name() == name);
        for fatal in &FATAL {
            fatal.store(0, Ordering::SeqCst);
        }
        let Some(&point) = found else {
            return false;
        };
        let passed = HITS[point as usize].load(Ordering::SeqCst);
        FATAL[point as usize].store(passed + hit, Ordering::SeqCst);
        true
    }

    /// How often each point has been passed by this process.
    pub fn hits() -> Vec<(&'static str, u64)> {
        let hits = |&point: &KillPoint| (point.name(), HITS[point as usize].load(Ordering::SeqCst));
        KillPoint::ALL.iter().map(hits).collect()
    }

    pub(super) fn pass(point: KillPoint) {
        READ_VARIABLE.call_once(|| {
            let variable = std::env::var(VARIABLE).unwrap_or_default();
            if let Some((name, Ok(hit))) = variable
                .split_once(':')
                .map(|(name, hit)| (name, hit.parse()))
            {
                set(name, hit);
            }
        });
        let hit = HITS[point as usize].fetch_add(1, Ordering::SeqCst) + 1;
        if hit == FATAL[point as usize].load(Ordering::SeqCst) {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            // It ends all threads, this one too, but not at once.
            loop {
                std::thread::park();
            }
        }
    }
}
