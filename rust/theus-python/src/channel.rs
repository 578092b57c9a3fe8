//! `Channel`, and the frame codec as two functions.

#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are converted into values of their own"
)]

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyList, PyTuple};
use theus::dispatch::{
    self, Frame, Kept, Kind, PROTOCOL_VERSION, Receiver, Sender, Side, Traffic, Wait,
};
use theus::error::Result;

use crate::control::Control;
use crate::error::{to_py, without_gil};
use crate::fd::take_over;
use crate::output::Output;
use crate::payload::Payload;
use crate::transient::Transient;

/// What a frame is in Python: kind, fields, attachments.
pub(crate) type PyFrame<'py> = (u8, Bound<'py, PyTuple>, Bound<'py, PyList>);

/// One end of a worker's private socket pair, carrying frames.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Channel {
    // None once closed. Two locks, so that a thread can send while another one waits for a frame.
    sender: Mutex<Option<Sender>>,
    receiver: Mutex<Option<Receiver>>,
    traffic: Arc<Traffic>,
    fd: RawFd,
    closed: AtomicBool,
}

#[pymethods]
impl Channel {
    /// The owner's end, non-blocking and close-on-exec, and the worker's descriptor for
    /// subprocess's `pass_fds`, which makes it inheritable in the worker alone.
    #[staticmethod]
    fn pair(py: Python<'_>) -> PyResult<(Self, RawFd)> {
        let (channel, theirs) = dispatch::Channel::pair().map_err(|error| to_py(py, error))?;
        Ok((Self::new(channel), theirs.into_raw_fd()))
    }

    /// The worker's end; takes the descriptor over and makes it close-on-exec.
    #[staticmethod]
    fn from_fd(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        dispatch::Channel::from_fd(take_over(fd)?)
            .map(Self::new)
            .map_err(|error| to_py(py, error))
    }

    /// Let small frames go by the page, to a peer that polls.
    fn use_page(&self, py: Python<'_>, control: &Control, side: &str) -> PyResult<()> {
        let side = match side {
            "owner" => Side::Owner,
            "worker" => Side::Worker,
            other => {
                return Err(PyValueError::new_err(format!(
                    "side is \"owner\" or \"worker\", not {other:?}"
                )));
            }
        };
        open(&mut *lock(py, &self.sender))?.use_page(&control.0, side);
        open(&mut *lock(py, &self.receiver))?.use_page(&control.0, side);
        Ok(())
    }

    /// The descriptor, for a selector; -1 once closed.
    fn fileno(&self) -> RawFd {
        if self.closed.load(Ordering::Relaxed) {
            -1
        } else {
            self.fd
        }
    }

    /// Queue a frame and write what the socket takes. True if nothing is left to write.
    #[pyo3(signature = (kind, fields, attachments = Vec::new()), text_signature = "($self, kind, fields, attachments=())")]
    fn send(
        &self,
        py: Python<'_>,
        kind: u8,
        fields: Vec<u64>,
        attachments: Vec<Payload>,
    ) -> PyResult<bool> {
        self.send_now(py, kind, &fields, &attachments)
    }

    /// Queue a frame, to be written by the next flush.
    #[pyo3(signature = (kind, fields, attachments = Vec::new()), text_signature = "($self, kind, fields, attachments=())")]
    fn queue(
        &self,
        py: Python<'_>,
        kind: u8,
        fields: Vec<u64>,
        attachments: Vec<Payload>,
    ) -> PyResult<()> {
        let mut sender = lock(py, &self.sender);
        let slices = slices(py, &attachments);
        let sender = open(&mut *sender)?;
        Kind::from_number(kind)
            .and_then(|kind| sender.queue(kind, &fields, &slices))
            .map_err(|error| to_py(py, error))
    }

    /// Write more of what is queued. True if nothing is left to write.
    fn flush(&self, py: Python<'_>) -> PyResult<bool> {
        open(&mut *lock(py, &self.sender))?
            .flush()
            .map_err(|error| to_py(py, error))
    }

    /// Write a whole frame, waiting without the GIL. If a signal handler raises, what is left goes
    /// out before the next frame.
    #[pyo3(signature = (kind, fields, attachments = Vec::new()), text_signature = "($self, kind, fields, attachments=())")]
    fn send_blocking(
        &self,
        py: Python<'_>,
        kind: u8,
        fields: Vec<u64>,
        attachments: Vec<Payload>,
    ) -> PyResult<()> {
        let done = self.send_now(py, kind, &fields, &attachments)?;
        self.finish_sending(py, done)
    }

    /// Write a whole frame by the socket, also to a peer that polls, waiting without the GIL.
    #[pyo3(signature = (kind, fields, attachments = Vec::new()), text_signature = "($self, kind, fields, attachments=())")]
    fn send_aside(
        &self,
        py: Python<'_>,
        kind: u8,
        fields: Vec<u64>,
        attachments: Vec<Payload>,
    ) -> PyResult<()> {
        self.queue(py, kind, fields, attachments)?;
        let done = self.flush(py)?;
        self.finish_sending(py, done)
    }

    /// Queue a PARTS frame with the segment's descriptor. True if nothing is left to write.
    fn send_parts(&self, py: Python<'_>, parts: &Transient) -> PyResult<bool> {
        let (file, fields) = parts.0.to_send().map_err(|error| to_py(py, error))?;
        self.send_carrying(py, Kind::Parts, &fields, file)
    }

    /// Write a whole PARTS frame, waiting without the GIL.
    fn send_parts_blocking(&self, py: Python<'_>, parts: &Transient) -> PyResult<()> {
        let done = self.send_parts(py, parts)?;
        self.finish_sending(py, done)
    }

    /// The segment that came with a PARTS frame of these fields; once for each, in their order.
    fn take_parts(&self, py: Python<'_>, fields: Vec<u64>) -> PyResult<Transient> {
        let file = self.take_descriptor(py, Kind::Parts)?;
        theus::Transient::received(file, &fields)
            .map(|parts| Transient(Arc::new(parts)))
            .map_err(|error| to_py(py, error))
    }

    /// Hand an output over in a whole OUTPUT frame, waiting without the GIL.
    fn send_output_blocking(&self, py: Python<'_>, number: u64, output: &Output) -> PyResult<()> {
        let file = without_gil(py, || output.0.hand_over())?;
        let fields = [number, output.0.length() as u64];
        let done = self.send_carrying(py, Kind::Output, &fields, file)?;
        self.finish_sending(py, done)
    }

    /// The next whole frame, or None. Raises `EOFError` when the peer closed its end.
    fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<PyFrame<'py>>> {
        let mut receiver = lock(py, &self.receiver);
        let frame = open(&mut *receiver)?.try_recv();
        optional(py, frame)
    }

    /// Whether something has arrived that is not taken yet.
    fn has_more(&self, py: Python<'_>) -> PyResult<bool> {
        open(&mut *lock(py, &self.receiver))?
            .has_more()
            .map_err(|error| to_py(py, error))
    }

    /// Wait for a frame without the GIL, polling for up to `spin_s` before blocking.
    #[pyo3(signature = (spin_s = 0.0))]
    fn recv<'py>(&self, py: Python<'py>, spin_s: f64) -> PyResult<PyFrame<'py>> {
        self.next(py, duration("spin_s", spin_s)?, |frame| to_tuple(py, frame))
    }

    /// Look for a frame again and again without the GIL, for up to `limit_s`, and take none; whether
    /// there is one.
    fn poll(&self, py: Python<'_>, limit_s: f64) -> PyResult<bool> {
        let limit = duration("limit_s", limit_s)?;
        let mut receiver = lock(py, &self.receiver);
        let receiver = open(&mut *receiver)?;
        let polled = py.detach(|| {
            let polled = receiver.poll(limit);
            receiver.stop_polling();
            // What was left until then has to be seen, as no event will tell of it.
            polled.and_then(|found| Ok(found || receiver.is_ready()?))
        });
        polled.map_err(|error| to_py(py, error))
    }

    /// What was sent so far.
    #[getter]
    fn sent_bytes(&self) -> u64 {
        self.traffic.sent_bytes()
    }

    /// What was received so far.
    #[getter]
    fn received_bytes(&self) -> u64 {
        self.traffic.received_bytes()
    }

    /// Close this end, without a word to the peer. Idempotent. A half that another thread waits on
    /// is closed when that thread lets go of the channel.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // In a forked child a lock may be held by a thread that does not exist there.
        if let Ok(mut sender) = self.sender.try_lock() {
            *sender = None;
        }
        if let Ok(mut receiver) = self.receiver.try_lock() {
            *receiver = None;
        }
    }
}

impl Channel {
    /// Waits for a frame without the GIL, polling for up to `spin` before it sleeps.
    ///
    /// # Errors
    /// Those of the channel, of signal handlers, and of `convert`.
    pub(crate) fn next<T>(
        &self,
        py: Python<'_>,
        spin: Duration,
        convert: impl FnOnce(&Frame<'_>) -> PyResult<T>,
    ) -> PyResult<T> {
        loop {
            // Another thread may have taken the frame that was waited for, hence the loop.
            let mut receiver = lock(py, &self.receiver);
            let frame = open(&mut *receiver)?.buffered();
            if let Some(frame) = frame.map_err(|error| to_py(py, error))? {
                return convert(&frame);
            }
            drop(receiver);
            wait(py, &self.receiver, |receiver| receiver.wait(spin))?;
        }
    }

    /// Writes a whole RESULT frame, waiting without the GIL.
    pub(crate) fn send_result(
        &self,
        py: Python<'_>,
        task: u64,
        took: u64,
        data: &[u8],
    ) -> PyResult<()> {
        let sent = {
            let mut sender = lock(py, &self.sender);
            let mut keep = |_, skip: usize| Box::new(data[skip..].to_vec()) as Kept;
            open(&mut *sender)?.send(Kind::Result, &[task, took], &[data], &mut keep)
        };
        let done = sent.map_err(|error| to_py(py, error))?;
        self.finish_sending(py, done)
    }

    /// The descriptor of a frame of this `kind`; once for each, in their order.
    pub(crate) fn take_descriptor(&self, py: Python<'_>, kind: Kind) -> PyResult<OwnedFd> {
        let mut receiver = lock(py, &self.receiver);
        open(&mut *receiver)?
            .take_descriptor(kind)
            .map_err(|error| to_py(py, error))
    }

    fn send_carrying(
        &self,
        py: Python<'_>,
        kind: Kind,
        fields: &[u64],
        file: OwnedFd,
    ) -> PyResult<bool> {
        let mut sender = lock(py, &self.sender);
        open(&mut *sender)?
            .send_carrying(kind, fields, file)
            .map_err(|error| to_py(py, error))
    }

    fn finish_sending(&self, py: Python<'_>, mut done: bool) -> PyResult<()> {
        while !done {
            wait(py, &self.sender, |sender| sender.wait())?;
            done = self.flush(py)?;
        }
        Ok(())
    }

    fn new(channel: dispatch::Channel) -> Self {
        Self {
            fd: channel.as_fd().as_raw_fd(),
            traffic: channel.traffic(),
            sender: Mutex::new(Some(channel.sender)),
            receiver: Mutex::new(Some(channel.receiver)),
            closed: AtomicBool::new(false),
        }
    }

    fn send_now(
        &self,
        py: Python<'_>,
        kind: u8,
        fields: &[u64],
        attachments: &[Payload],
    ) -> PyResult<bool> {
        // First the lock, as waiting for it lets other threads have the GIL, and the bytes.
        let mut sender = lock(py, &self.sender);
        let sender = open(&mut *sender)?;
        let slices = slices(py, attachments);
        let mut keep = |index: usize, skip| attachments[index].keep(py, skip);
        Kind::from_number(kind)
            .and_then(|kind| sender.send(kind, fields, &slices, &mut keep))
            .map_err(|error| to_py(py, error))
    }
}

fn slices<'a>(py: Python<'_>, attachments: &'a [Payload]) -> Vec<&'a [u8]> {
    attachments
        .iter()
        .map(|payload| payload.bytes(py))
        .collect()
}

pub(crate) fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
}

/// Encode a frame into one piece.
#[pyfunction]
#[pyo3(signature = (kind, fields, attachments = Vec::new()), text_signature = "(kind, fields, attachments=())")]
fn encode_frame(
    py: Python<'_>,
    kind: u8,
    fields: Vec<u64>,
    attachments: Vec<Payload>,
) -> PyResult<Bound<'_, PyBytes>> {
    let slices = slices(py, &attachments);
    Kind::from_number(kind)
        .and_then(|kind| dispatch::encode(kind, &fields, &slices))
        .map(|frame| PyBytes::new(py, &frame))
        .map_err(|error| to_py(py, error))
}

/// Decode bytes that are exactly one frame.
#[pyfunction]
fn decode_frame(py: Python<'_>, data: Payload) -> PyResult<PyFrame<'_>> {
    dispatch::decode(data.bytes(py))
        .map_err(|error| to_py(py, error))
        .and_then(|frame| to_tuple(py, &frame))
}

pub(crate) fn to_tuple<'py>(py: Python<'py>, frame: &Frame<'_>) -> PyResult<PyFrame<'py>> {
    let attachments = frame.attachments().map(|bytes| PyBytes::new(py, bytes));
    Ok((
        frame.kind().number(),
        PyTuple::new(py, frame.fields())?,
        PyList::new(py, attachments)?,
    ))
}

fn optional<'py>(
    py: Python<'py>,
    frame: Result<Option<Frame<'_>>>,
) -> PyResult<Option<PyFrame<'py>>> {
    match frame {
        Ok(Some(frame)) => to_tuple(py, &frame).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(to_py(py, error)),
    }
}

fn lock<'a, T>(py: Python<'_>, half: &'a Mutex<T>) -> MutexGuard<'a, T> {
    // A panic leaves a half as it was before or after a whole step.
    half.lock_py_attached(py)
        .unwrap_or_else(PoisonError::into_inner)
}

fn open<T>(half: &mut Option<T>) -> PyResult<&mut T> {
    half.as_mut()
        .ok_or_else(|| PyOSError::new_err("the channel is closed"))
}

/// Waits without the GIL, then lets Python run its signal handlers if that is why the wait ended.
fn wait<T: Send>(
    py: Python<'_>,
    half: &Mutex<Option<T>>,
    wait: impl FnOnce(&mut T) -> Result<Wait> + Send,
) -> PyResult<()> {
    let waited = py.detach(|| {
        let mut half = half.lock().unwrap_or_else(PoisonError::into_inner);
        half.as_mut().map_or(Ok(Wait::Ready), wait)
    });
    match waited.map_err(|error| to_py(py, error))? {
        Wait::Ready => Ok(()),
        Wait::Interrupted => py.check_signals(),
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Channel>()?;
    module.add_function(wrap_pyfunction!(encode_frame, module)?)?;
    module.add_function(wrap_pyfunction!(decode_frame, module)?)?;
    module.add("PROTOCOL_VERSION", PROTOCOL_VERSION)?;
    for kind in Kind::ALL {
        module.add(format!("KIND_{kind}").as_str(), kind.number())?;
    }
    Ok(())
}
