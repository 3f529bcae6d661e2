//! Members that lie together: everybody, those of a zone, of a subset.

use rand_core::Rng;

use super::{
    Loads,
    draws::Draws,
    fleet::Fleet,
    question::{Method, Question},
    table::Table,
    turns::Turns,
};

/// Places of a table before the members are tried in order.
const STEPS: usize = 4096;

/// The members at `start..end`.
#[derive(Debug)]
pub(super) struct Scope {
    start: u32,
    end: u32,
    pub(super) admitted: u32,
    /// The sum of its weights.
    pub(super) capacity: u64,
    /// Made when it is needed: most subsets never are, and tables take their time.
    chooser: Option<Box<Chooser>>,
}

#[derive(Debug)]
enum Chooser {
    Draws(Draws),
    Turns(Turns),
    /// And for what has no key.
    Table(Table, Draws),
}

impl Scope {
    pub(super) fn new(fleet: &Fleet, (start, end): (u32, u32)) -> Self {
        Self { start, end, admitted: end - start, capacity: fleet.capacity(start, end), chooser: None }
    }

    pub(super) fn start(&self) -> u32 {
        self.start
    }

    pub(super) fn len(&self) -> u32 {
        self.end - self.start
    }

    /// Makes what the choice needs, unless it was made.
    pub(super) fn prepare(&mut self, method: Method, fleet: &Fleet, keys: &[u64], rng: &mut impl Rng) {
        let (start, end) = (self.start, self.end);
        self.chooser.get_or_insert_with(|| {
            Box::new(match method {
                Method::TwoChoices(_) | Method::Random => Chooser::Draws(Draws::new(fleet, start, end)),
                Method::RoundRobin => Chooser::Turns(Turns::new(fleet, start, end, rng)),
                Method::Hash(kind) => {
                    let keys = &keys[start as usize..end as usize];
                    let table = Table::new(kind, keys, fleet.uneven(start, end));
                    Chooser::Table(table, Draws::new(fleet, start, end))
                }
            })
        });
    }

    /// The position of one that may be taken, if there is one.
    pub(super) fn pick<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &mut self,
        method: Method,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let candidates = if question.panic { self.len() } else { self.admitted };
        match (candidates, self.len()) {
            (0, _) => return None,
            (_, 1) => return Some(self.start as usize).filter(|position| question.takes(*position)),
            _ => {}
        }
        self.prepare(method, question.fleet, question.keys, rng);
        let (start, end) = (self.start, self.end);
        let chooser = self.chooser.as_deref_mut()?;
        match (chooser, method, question.hash) {
            (Chooser::Draws(draws), Method::TwoChoices(measure), _) => {
                draws.two_choices(measure, question, rng)
            }
            (Chooser::Turns(turns), ..) => turns.next(question, rng),
            (Chooser::Table(table, _), _, Some(hash)) => {
                let mut walk = table.walk(hash).take(STEPS).map(|member| start as usize + member);
                let found = walk.find(|position| question.takes(*position));
                found.or_else(|| {
                    let from = start + (hash % u64::from(end - start)) as u32;
                    question.first_of(start, from, end)
                })
            }
            (Chooser::Draws(draws) | Chooser::Table(_, draws), ..) => draws.at_random(question, rng),
        }
    }
}
