//! The full Fisher times vectors, without the matrix.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::module::ParamGroup;
use fisher_core::store::GradientStore;

use super::operator::{Operator, check};
use super::vectors::{add, dot};
use crate::error::{Error, Result};
use crate::pairs::{Rows, Slice, Work, for_each_run};

/// The full empirical Fisher of a task over some parameters, as an operator: `F v = (1/n) Σ_i g_i ⟨g_i, v⟩ / T_i`.
///
/// A vector has the elements of the parameters one after the other, in the order of the store's catalogue
/// ([`FisherProduct::places`]). Gradients are read in tiles, twice for as many vectors as are given together; sums are in float64.
pub struct FisherProduct<'a> {
    rows: Rows<'a>,
    /// A parameter each.
    slices: Vec<Slice>,
    places: Vec<(String, Range<usize>)>,
    dimension: usize,
    work: Work,
}

impl<'a> FisherProduct<'a> {
    /// Of the parameters of a group, or of all. `memory` is in bytes: half for tiles, half for what is held of vectors.
    ///
    /// # Errors
    /// [`Error::NoSamples`] when the task has none, and an error when the group holds no parameter.
    pub fn new(
        store: &'a GradientStore,
        task: &'a str,
        group: Option<&ParamGroup>,
        memory: usize,
    ) -> Result<Self> {
        if store.samples(task).is_empty() {
            return Err(Error::no_samples(task));
        }
        let chosen = match group {
            Some(group) => store.catalogue().filter(group)?,
            None => store.catalogue().clone(),
        };
        let mut dimension = 0;
        let places = chosen.parameters().iter().map(|parameter| {
            let start = dimension;
            dimension += parameter.elements();
            (parameter.path().to_owned(), start..dimension)
        });
        let places: Vec<(String, Range<usize>)> = places.collect();
        let slice = |(path, place): &(String, Range<usize>)| {
            let all = std::iter::once(0..place.len()).collect();
            Slice::new(path.clone(), [(path.clone(), all)])
        };
        Ok(Self {
            rows: Rows::of(store, &[task]),
            slices: places.iter().map(slice).collect(),
            places,
            dimension,
            work: Work::new(store.device(), memory),
        })
    }

    /// The parameters, and where the elements of each lie in a vector.
    pub fn places(&self) -> &[(String, Range<usize>)] {
        &self.places
    }

    /// A vector from its elements by parameter.
    ///
    /// # Errors
    /// [`Error::Keys`] when a parameter is missing or is not one of these, [`Error::Sizes`] when one has another length.
    pub fn join(&self, parts: &BTreeMap<String, Vec<f64>>) -> Result<Vec<f64>> {
        let known = |path: &String| self.places.iter().any(|(known, _)| known == path);
        if let Some(path) = parts.keys().find(|path| !known(path)) {
            return Err(Error::keys(path, "the vector", "the operator"));
        }
        let mut vector = vec![0.0; self.dimension];
        for (path, place) in &self.places {
            let missing = || Error::keys(path, "the operator", "the vector");
            let part = parts.get(path).ok_or_else(missing)?;
            if part.len() != place.len() {
                return Err(Error::sizes(path, part.len(), place.len()));
            }
            vector[place.clone()].copy_from_slice(part);
        }
        Ok(vector)
    }

    /// The elements of a vector by parameter.
    ///
    /// # Errors
    /// [`Error::Sizes`] when it has another length.
    pub fn split(&self, vector: &[f64]) -> Result<BTreeMap<String, Vec<f64>>> {
        if vector.len() != self.dimension {
            return Err(Error::sizes("the vector", vector.len(), self.dimension));
        }
        let part =
            |(path, place): &(String, Range<usize>)| (path.clone(), vector[place.clone()].to_vec());
        Ok(self.places.iter().map(part).collect())
    }
}

impl Operator for FisherProduct<'_> {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn apply(&self, vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        check(vectors, self.dimension, "the vector")?;
        let (n, count) = (self.rows.len(), vectors.len());
        let numbered: Vec<usize> = (0..self.slices.len()).collect();
        let slice = |k: usize| {
            (
                std::slice::from_ref(&self.slices[k]),
                self.places[k].1.clone(),
            )
        };
        // ⟨g_i, v⟩ of every sample and vector.
        let mut along = vec![0.0; n * count];
        let products = |&k: &usize| {
            let (slices, place) = slice(k);
            let mut part = vec![0.0; n * count];
            for_each_run(slices, &self.rows, self.work.bytes, |_, row, at, run| {
                let run: Vec<f64> = run.iter().map(|&g| f64::from(g)).collect();
                let start = place.start + at;
                for (vector, into) in vectors.iter().zip(&mut part[row * count..]) {
                    *into += dot(&run, &vector[start..start + run.len()]);
                }
            })?;
            Ok(part)
        };
        let take = |part: Vec<f64>| add(&mut along, 1.0, &part);
        self.work
            .each(&numbered, |_| 8 * n * count, products, take)?;
        for (of, tokens) in along.chunks_mut(count.max(1)).zip(&self.rows.tokens) {
            of.iter_mut().for_each(|x| *x /= n as f64 * tokens);
        }
        let sums = |&k: &usize| {
            let (slices, place) = slice(k);
            let mut part = vec![vec![0.0; place.len()]; count];
            for_each_run(slices, &self.rows, self.work.bytes, |_, row, at, run| {
                let run: Vec<f64> = run.iter().map(|&g| f64::from(g)).collect();
                for (into, along) in part.iter_mut().zip(&along[row * count..]) {
                    add(&mut into[at..at + run.len()], *along, &run);
                }
            })?;
            Ok(part)
        };
        let mut found = vec![Vec::with_capacity(self.dimension); count];
        let need = |&k: &usize| 8 * count * self.places[k].1.len();
        self.work.each(&numbered, need, sums, |part| {
            let parts = found.iter_mut().zip(part);
            parts.for_each(|(found, part)| found.extend(part));
        })?;
        check(&found, self.dimension, "the product")?;
        Ok(found)
    }
}
