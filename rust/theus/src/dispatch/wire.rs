//! Stands for the folder that the protocol moves to.
pub(super) use super::{
    Channel, Control, Frame, Kind, PROTOCOL_VERSION, Receiver, Sender, Side, Traffic,
};
