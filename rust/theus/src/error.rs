//! Every way this crate fails.
use std::borrow::Cow;
use std::collections::TryReserveError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::dispatch::Kind;

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every way this crate fails, named by cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{operation} failed: {source}")]
    Os {
        /// What was being done.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },

    /// No descriptor is left.
    #[error("{operation} failed: {}", descriptor_advice(*limit))]
    DescriptorLimit {
        /// What was being done.
        operation: &'static str,
        /// How many this process may have; `None`: the limit is the machine's.
        limit: Option<u64>,
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },
    /// This process has as many mappings as the kernel allows one.
    #[error(
        "{operation} failed: this process has {found} of the {limit} mappings that vm.max_map_count \
         allows, and keeps some for itself. Each entry takes one: drop views, free entries, put small \
         arrays into one entry, or raise it (sysctl -w vm.max_map_count=1048576)"
    )]
    MappingLimit {
        /// What was being done.
        operation: &'static str,
        /// `vm.max_map_count`.
        limit: u64,
        /// How many there are.
        found: u64,
    },
    /// The limit of this process's address space leaves too little room.
    #[error(
        "{operation} failed: the address space of this process is limited to {limit} bytes. Drop views, \
         free entries, or raise the limit (ulimit -v)"
    )]
    AddressSpaceLimit {
        /// What was being done.
        operation: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The kernel has no memory for it.
    #[error(
        "{operation} failed: the kernel has no memory for it. Free entries, or look at \
         vm.overcommit_memory (theus doctor)"
    )]
    OutOfMemory {
        /// What was being done.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },
    /// A file of another user's, who could change it while it is read.
    #[error("{} belongs to user {user}, not to the user who asks: it is not read", path.display())]
    ForeignSegment {
        /// Where it lies.
        path: PathBuf,
        /// Whose it is.
        user: u32,
    },
    /// No segment has this name or path.
    #[error("no segment at {}: it was freed, its session ended, or the name is wrong", path.display())]
    SegmentNotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The session has no entry of this name.
    #[error("the session has no published entry {key:?}")]
    EntryNotFound {
        /// The name.
        key: String,
    },
    /// An entry with items of another type, or none.
    #[error("entry {key:?} is {found}, not a tensor of {expected}")]
    DtypeMismatch {
        /// The entry.
        key: String,
        /// The type that was asked for, as Rust calls it.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A tensor of another shape than was asked for.
    #[error("entry {key:?} has the shape {found:?}, not {expected}")]
    ShapeMismatch {
        /// The entry.
        key: String,
        /// The shape that was asked for, `_` for any size.
        expected: String,
        /// The shape that it has.
        found: Vec<u64>,
    },
    /// An entry that is no table.
    #[error("entry {key:?} is a tensor: it has no record batches")]
    NotATable {
        /// The entry.
        key: String,
    },
    /// A reservation does not fit.
    #[error(
        "cannot reserve {requested} bytes for {key:?}: {limit} has {available} bytes left. \
         Free entries, drop old snapshots, or raise the limit"
    )]
    HeavyZoneFull {
        /// The entry.
        key: String,
        /// How many bytes were asked for.
        requested: u64,
        /// How many are left.
        available: u64,
        /// What limits them.
        limit: Cow<'static, str>,
    },
    /// A directory cannot keep segments that do not fit in memory.
    #[error("{} cannot be the spill directory: {reason}", path.display())]
    SpillDirectory {
        /// The directory.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// The bytes of a segment are not what its format promises.
    #[error("{segment} is not a valid segment: {reason}")]
    CorruptSegment {
        /// Its name or path.
        segment: String,
        /// The first rule that does not hold.
        reason: String,
    },
    /// The operation needs a published segment.
    #[error("entry {key:?} is not published, so it has no name yet: seal it first")]
    Unpublished {
        /// The entry.
        key: String,
    },
    /// The entry goes on changing, as its owner made it to (`mutable=True`).
    #[error(
        "entry {key:?} is mutable: its owner goes on writing it, so that nobody can borrow its items. \
         Read them through the segment's mapping, or have its owner put a copy"
    )]
    Mutable {
        /// The entry.
        key: String,
    },
    /// A worker's output that the owner has already.
    #[error("output {key:?} was handed over to the session's owner before")]
    HandedOver {
        /// Its name in the task.
        key: String,
    },
    /// The backend has no way to do it.
    #[error("{operation} is not supported by the {backend} backend")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The backend.
        backend: Backend,
    },
    /// The session was closed, or this process is a forked child, which owns nothing.
    #[error("session {session} is closed, or this process is a forked child of its owner")]
    SessionClosed {
        /// Its id.
        session: String,
    },
    /// An entry's name is longer than a catalog slot holds.
    #[error("the name {key:?} has {found} bytes of UTF-8; at most {expected} fit")]
    KeyTooLong {
        /// The name.
        key: String,
        /// The bytes that fit.
        expected: usize,
        /// The bytes it has.
        found: usize,
    },
    /// Not the name of a segment or session.
    #[error("{name:?} is not the name of a {expected}")]
    InvalidName {
        /// What was given.
        name: String,
        /// What it should have named.
        expected: &'static str,
    },
    /// The shape's size does not fit into 63 bits.
    #[error("shape {shape:?} of {item_bytes} byte items is larger than any memory")]
    ShapeOverflow {
        /// The shape.
        shape: Vec<u64>,
        /// Bytes of one item.
        item_bytes: u64,
    },
    /// Not an element type of tensors.
    #[error("{found:?} is not an element type: use i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 or f8")]
    UnsupportedElement {
        /// What was given.
        found: String,
    },
    /// Data of another length than its shape says.
    #[error("entry {key:?} takes {expected} bytes of data, {found} were given")]
    LengthMismatch {
        /// The entry.
        key: String,
        /// The bytes its shape takes.
        expected: u64,
        /// The bytes that were given.
        found: u64,
    },
    /// A table that cannot be written.
    #[error("entry {key:?}: {reason}")]
    Table {
        /// The entry.
        key: String,
        /// What Arrow says.
        reason: String,
    },
    /// A column that cannot be written.
    #[error("column {column:?}: {reason}")]
    Column {
        /// The column.
        column: String,
        /// What Arrow says.
        reason: String,
    },
    /// Chunks whose dictionaries have too many values together.
    #[error(
        "column {column:?}: its chunks' dictionaries have {values} values together, more than keys of \
         type {keys} can tell apart. Cast it to a dictionary with wider keys"
    )]
    DictionaryOverflow {
        /// The column.
        column: String,
        /// How many there are.
        values: usize,
        /// The type of the keys.
        keys: String,
    },
    /// The bytes are not a frame: they do not begin with the magic.
    #[error("a frame begins with \"TH\", these bytes begin with {found:02x?}")]
    FrameMagic {
        /// The two bytes in its place.
        found: [u8; 2],
    },
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {found} of the protocol, this side version {expected}")]
    FrameVersion {
        /// The version in the frame.
        found: u8,
        /// The version of this build.
        expected: u8,
    },
    /// No kind of frame has this number.
    #[error("no kind of frame has the number {found}")]
    FrameKind {
        /// The number in the frame.
        found: u8,
    },
    /// A frame with more or fewer fields or attachments than its kind has.
    #[error("a {kind} frame has {expected} {part}, not {found}")]
    FrameCount {
        /// The kind of the frame.
        kind: Kind,
        /// What was counted: fields or attachments.
        part: &'static str,
        /// What the kind allows.
        expected: crate::dispatch::Count,
        /// How many there are.
        found: usize,
    },
    /// A frame's length is not the sum of its parts.
    #[error("a {kind} frame of {expected} bytes says that it has {found}")]
    FrameLength {
        /// The kind of the frame.
        kind: Kind,
        /// The length that its parts add up to, or need at least.
        expected: u64,
        /// The length in its prefix.
        found: u64,
    },
    /// Bytes that end before the frame does.
    #[error("a frame of at least {expected} bytes ends after {found}")]
    FrameIncomplete {
        /// The bytes that the frame needs, as far as they tell.
        expected: u64,
        /// The bytes that are there.
        found: usize,
    },
    /// A descriptor and its frame did not come together.
    #[error(
        "no descriptor goes with this {kind} frame: its kind carries none, or this process has no \
         room for more (ulimit -n)"
    )]
    FrameDescriptor {
        /// The kind of the frame.
        kind: Kind,
    },
    /// A descriptor that came with no frame that carries one.
    #[error("a descriptor came with no PARTS or OUTPUT frame")]
    StrayDescriptor,
    /// A frame that says nothing to this worker, as its owner has sent it in the wrong place or form.
    #[error("a {kind} frame means nothing here: {reason}")]
    FrameMeaning {
        /// The kind of the frame.
        kind: Kind,
        /// What is wrong with it.
        reason: String,
    },
    /// A worker's program that was started by somebody else than an engine.
    #[error("{reason}")]
    NotStartedByEngine {
        /// What it lacks.
        reason: String,
    },
    /// No memory for a frame that is arriving.
    #[error("no memory for {bytes} more bytes of a frame")]
    FrameMemory {
        /// How many more bytes were asked for.
        bytes: usize,
        /// The allocator's answer.
        #[source]
        source: TryReserveError,
    },
    /// The peer closed its end, or died.
    #[error("the peer closed its end of the channel, {pending_bytes} bytes into a frame")]
    ChannelEnd {
        /// The bytes of an incomplete last frame.
        pending_bytes: u64,
    },
    /// Nobody will read what is sent: the peer closed its end, or died.
    #[error("nobody reads the other end of the channel: {source}")]
    ChannelPeerGone {
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },
    /// A descriptor that is not the stream socket of a channel.
    #[error("a channel needs a Unix stream socket")]
    ChannelSocket,
    /// The engine was closed while something of it was waited for.
    #[error("the engine was closed before this task ended")]
    EngineClosed,
    /// A task that returned an error, raised an exception, or panicked.
    #[error("{task} failed: {message} ({kind})")]
    TaskFailed {
        /// The function.
        task: String,
        /// The type of the error, as its program calls it.
        kind: String,
        /// The text of the error.
        message: String,
        /// Its traceback, perhaps empty.
        traceback: String,
    },
    /// A task that was cancelled.
    #[error("{task} was cancelled")]
    TaskCancelled {
        /// The function.
        task: String,
    },
    /// No program of the engine has the task.
    #[error("no program has a task {task:?}: {known}")]
    TaskNotFound {
        /// The name that was asked for.
        task: String,
        /// The tasks that there are.
        known: String,
    },
    /// A value that serde cannot make a plain value of, or the other way round.
    #[error("{what} cannot be told as plain values: {reason}")]
    PlainValue {
        /// The value.
        what: String,
        /// The reason of serde.
        reason: String,
    },
    /// An error that several calls have in common.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// A task of the process from which this one was forked.
    #[error("this task is the parent's: a forked child gets no results")]
    ForkedTask,
    /// A task that did not end in time; it was stopped.
    #[error("{task} did not end within {} s and was stopped", timeout.as_secs_f64())]
    TaskTimeout {
        /// The function.
        task: String,
        /// The time that it had.
        timeout: Duration,
    },
    /// A worker that died while it ran a task.
    #[error("worker {} {} while it ran {task}{}", death.pid, how(death.status), trace(&death.trace))]
    WorkerDied {
        /// The function.
        task: String,
        /// How the worker ended.
        death: Death,
    },
    /// A task that may be run again has killed a worker each time.
    #[error("{task} killed {} workers and is not run again{}", deaths.len(), ends(deaths))]
    PoisonTask {
        /// The function.
        task: String,
        /// How each worker ended, the last one last.
        deaths: Vec<Death>,
    },
    /// A worker that was ended, as its frames cannot be taken.
    #[error("worker {pid} was ended while it had {task}: what it sent cannot be taken: {source}")]
    WorkerBroken {
        /// The function.
        task: String,
        /// The worker.
        pid: i32,
        /// What is wrong with its frames.
        #[source]
        source: Arc<Error>,
    },
    /// An answer to a task that its worker does not run.
    #[error("it answered task {task}, which is not the one it runs")]
    WorkerAnswer {
        /// The number of the task.
        task: u64,
    },
    /// Workers that end before they can take a task.
    #[error(
        "no worker starts: {attempts} in a row ended before they were ready, the last with {}. It runs \
         {program}, and wrote {stderr:?}", how(*status)
    )]
    WorkerStart {
        /// How many in a row.
        attempts: u32,
        /// The exit code of the last one, negative for a signal.
        status: i32,
        /// What it wrote to its standard error.
        stderr: String,
        /// The program.
        program: String,
        /// Whether it is a Python interpreter.
        interpreter: bool,
    },
    /// An interpreter that cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    ProgramStart {
        /// Its path.
        program: PathBuf,
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },
    /// A program that cannot be started as a worker, or is none.
    #[error("{} does not work as a worker: {reason}", program.display())]
    NativeWorker {
        /// Its path.
        program: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The version of the protocol that it speaks, if that is what is wrong.
        version: Option<u8>,
        /// What is wrong with its frames.
        #[source]
        source: Option<Arc<Error>>,
    },
    /// A descriptor that is not a control page.
    #[error("a control page has {expected} bytes and cannot shrink; this one has {found} bytes")]
    ControlPage {
        /// The size of a control page.
        expected: u64,
        /// The size of this file.
        found: u64,
    },
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Its process id.
    pub pid: i32,
    /// Its exit code, negative for a signal.
    pub status: i32,
    /// The text that it left: the stack at a fatal signal, or a panic.
    pub trace: String,
}

fn how(status: i32) -> String {
    if status < 0 {
        format!("was killed by signal {}", -status)
    } else {
        format!("left with exit code {status}")
    }
}

fn trace(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("\n\n{text}")
    }
}

fn ends(deaths: &[Death]) -> String {
    let ends = deaths
        .iter()
        .map(|it| format!("worker {} {}", it.pid, how(it.status)));
    format!(": {}", ends.collect::<Vec<_>>().join("; "))
}

fn descriptor_advice(limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!(
            "this process has all {limit} descriptors open that it may. Each entry takes one until it \
             is published, each worker three: publish or drop drafts, or raise the limit (ulimit -n)"
        ),
        None => "all processes together have as many files open as the machine allows: raise \
                 fs.file-max"
            .to_owned(),
    }
}
