//! Cost
