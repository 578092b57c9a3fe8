//! Managed shared memory for Apache Arrow data, and the protocol that hands it to workers.
//!
//! A [`Session`] is a process's right to make [`Segment`]s: named pieces of shared memory that hold
//! Arrow tensors and tables any Arrow reader can open by path. A segment has no name while it is written, so
//! that the kernel frees it by itself whatever happens; publication seals it, gives it its name and
//! is final. The session's lock, held by a mapping, tells everybody that its owner lives; whoever
//! finds it free [sweeps](sweep::sweep) what the dead left. Nothing is ever unlinked by hand.
//!
//! ```
//! use std::sync::Arc;
//!
//! use arrow::array::{ArrayRef, Int64Array, RecordBatch};
//! use theus::{Config, Session};
//!
//! let session = Session::create(Config::default())?;
//! let mut matrix = session.alloc_tensor::<f32>("matrix", &[2, 3])?;
//! matrix.as_mut_slice().fill(0.5);
//! let matrix = matrix.publish()?;
//!
//! let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
//! let batch = RecordBatch::try_from_iter([("id", ids)])?;
//! session.put("trades", batch.schema(), [Ok(batch.clone())])?;
//!
//! let reader = Session::attach(session.id().clone())?; // another process, with the session's id
//! assert_eq!(reader.get("trades")?.batches()?, [batch]);
//! assert_eq!(reader.get("matrix")?.tensor::<f32>()?.as_slice(), matrix.as_slice());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`dispatch`] is the other half: frames between an owner and its workers, which name segments and
//! never carry their bytes.
//!
//! ```
//! use theus::layout::Spec;
//! use theus::layout::tensor::{ElementType, Order, TensorSpec};
//! use theus::{Config, Segment, Session};
//!
//! let session = Session::create(Config::default())?;
//! let spec = TensorSpec::dense("matrix", ElementType::F32, &[2, 3], Order::C)?;
//! let segment = session.create_tensor(spec, Some(&[0; 24]))?;
//! session.publish(&segment)?;
//!
//! let opened = Segment::open(&segment.path()?)?;
//! assert!(matches!(opened.spec(), Spec::Tensor(spec) if spec.shape == [2, 3]));
//! session.close()?;
//! assert!(Segment::open(&segment.path()?).is_err());
//! # Ok::<(), theus::Error>(())
//! ```

pub mod backend;
pub mod budget;
pub mod catalog;
pub mod cgroup;
mod copy;
pub mod descriptor;
pub mod directory;
pub mod dispatch;
pub mod error;
mod fill;
mod huge;
mod kept;
pub mod kill_point;
pub mod layout;
mod lease;
mod limits;
pub mod mapping;
mod os;
pub mod output;
mod pool;
pub mod segment;
pub mod session;
mod shared;
mod signals;
mod spawn;
mod store;
pub mod sweep;
pub mod tensor;
pub mod transient;
#[cfg(feature = "worker")]
pub mod worker;
pub mod zone;

pub use arrow;
pub use backend::{Backend, Capabilities, SpillDirectory};
pub use budget::Budget;
pub use descriptor::{SegmentName, SessionId};
pub use dispatch::{Call, CallOptions, Engine, EngineBuilder, Python};
pub use error::{Error, Result};
pub use fill::NewTable;
#[cfg(feature = "ndarray")]
pub use ndarray;
pub use os::fork_generation;
pub use output::Output;
pub use segment::Segment;
pub use session::{AttachedSession, Config, Session, TensorMut};
pub use tensor::{Element, Tensor};
pub use transient::Transient;
pub use zone::Zone;
