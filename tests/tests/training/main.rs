//! What watches and uses a training: hooks, noise scales, resuming, copies.

mod copies;
mod course;
mod hook;
mod noise;
mod once;
mod parallel;
mod resuming;
mod training;
mod transfer;
