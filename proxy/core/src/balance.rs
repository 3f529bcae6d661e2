//! Which endpoint gets the next request.

use std::{num::NonZeroU32, time::Instant};

use outrigger_proto::spec::LoadBalancer;
use rand_core::Rng;

pub mod ewma;

pub use ewma::Load;

/// The choice among the endpoints of one backend, in one worker. Made anew when the endpoints or the policy change;
/// the [`Load`]s live on outside, per endpoint.
#[derive(Debug)]
pub struct Picker {
    _private: (),
}

/// The loads of the endpoints, by the index that [`Picker::pick`] returns.
pub trait Loads {
    /// Calls with the load of an endpoint; implemented for `[Load]`, and by the shell over its `Rc<RefCell<…>>`s.
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R;
}

impl Loads for [Load] {
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R {
        read(&self[index])
    }
}

impl Picker {
    pub fn new(_policy: LoadBalancer, _weights: &[NonZeroU32], _rng: &mut impl Rng) -> Self {
        unimplemented!()
    }
    /// One endpoint for which `usable` holds (not tried already, not ejected), or `None` if there is none.
    pub fn pick(
        &mut self,
        _loads: &(impl Loads + ?Sized),
        _usable: impl Fn(usize) -> bool,
        _rng: &mut impl Rng,
        _now: Instant,
    ) -> Option<usize> {
        unimplemented!()
    }
}
