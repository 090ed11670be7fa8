//! Meters on made-up machines: exact joules, or null with the reason.

mod agreement;
mod attribution;
mod conditions;
mod feeds;
mod form;
mod machine;
mod neuron;
mod nvml;
mod rapl;
mod schema;
mod whole;
