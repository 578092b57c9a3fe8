//! The Python binding of theus: arguments in, results out, no logic.

use pyo3::prelude::*;

mod buffer;
mod c_data;
mod calls;
mod channel;
mod control;
mod dispatcher;
mod error;
mod fd;
mod function;
#[cfg(feature = "kill-points")]
mod kill_point;
mod machine;
mod output;
mod payload;
mod segment;
mod session;
mod snapshot;
mod table;
mod task;
mod transient;
mod watch;

#[pymodule]
fn _theus(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<session::Session>()?;
    module.add_class::<segment::Segment>()?;
    module.add_class::<buffer::Buffer>()?;
    module.add_class::<transient::Transient>()?;
    module.add_class::<output::Zone>()?;
    module.add_class::<output::Output>()?;
    module.add_function(wrap_pyfunction!(segment::open_segment, module)?)?;
    module.add_function(wrap_pyfunction!(segment::attach_segment, module)?)?;
    module.add_function(wrap_pyfunction!(segment::locate, module)?)?;
    module.add_function(wrap_pyfunction!(session::sessions, module)?)?;
    module.add_function(wrap_pyfunction!(session::catalog, module)?)?;
    module.add_function(wrap_pyfunction!(session::sweep, module)?)?;
    module.add_function(wrap_pyfunction!(session::fork_generation, module)?)?;
    #[cfg(feature = "kill-points")]
    kill_point::register(module)?;
    calls::register(module)?;
    channel::register(module)?;
    control::register(module)?;
    dispatcher::register(module)?;
    function::register(module)?;
    snapshot::register(module)?;
    task::register(module)?;
    machine::register(module)?;
    watch::register(module)
}
