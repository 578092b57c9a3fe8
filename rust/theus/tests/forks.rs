//! What a forked child must not do to itself.

use memmap2::MmapMut;
use theus::{Config, Session};

/// The catalog and the lock are not mapped in a child, so that their addresses are free for what
/// the child maps. Dropping the parent's session there must not unmap that.
#[test]
fn a_child_that_drops_its_parents_session_keeps_its_own_memory() {
    const PIECE: usize = 16 << 20;
    let session = Session::create(Config::default()).unwrap();
    #[expect(unsafe_code, reason = "a child that does not execute anything")]
    // SAFETY: the child maps, writes and unmaps memory and ends; no other thread of this test
    // process holds a lock that it needs.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut pieces: Vec<MmapMut> = (0..32).map(|_| MmapMut::map_anon(PIECE).unwrap()).collect();
        for piece in &mut pieces {
            piece[PIECE - 1] = 7;
        }
        drop(session);
        let whole = pieces.iter().all(|piece| piece[PIECE - 1] == 7);
        #[expect(
            unsafe_code,
            reason = "a child leaves without running what is its parent's"
        )]
        // SAFETY: it ends this process, whatever its state.
        unsafe {
            libc::_exit(i32::from(!whole));
        }
    }
    let pid = rustix::process::Pid::from_raw(child).unwrap();
    let options = rustix::process::WaitOptions::empty();
    let (_, status) = rustix::process::waitpid(Some(pid), options)
        .unwrap()
        .unwrap();
    assert_eq!(
        (status.exit_status(), status.terminating_signal()),
        (Some(0), None)
    );
    session.close().unwrap();
}
