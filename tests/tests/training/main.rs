//! What watches and uses a training: hooks, noise scales, resuming, copies.

mod ablation;
mod copies;
mod course;
mod hook;
mod kinds;
mod natural;
mod noise;
mod once;
mod parallel;
mod resuming;
mod training;
mod transfer;
