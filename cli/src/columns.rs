//! Rows of figures in a given width: names give way first, down to what can still be told apart, then whole columns
//! go, the least important first. Without a width nothing is cut or left out.

use crate::figures::{shorten, width};

pub(crate) const GAP: usize = 2;
/// A name is not cut below this as long as there is a column that can be missed,
const NAME: usize = 18;
/// nor below this as long as there is any other that can go.
const SHORT_NAME: usize = 8;
/// `1,234`, `4.6ms`, `512ms`.
const FIGURE: usize = 5;
/// Columns that go first are above it.
const VITAL: u8 = 3;

pub(crate) struct Column {
    pub(crate) title: &'static str,
    kind: Kind,
    /// 0: stays whatever happens. Of the others, the highest goes first.
    goes: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Figure,
}

pub(crate) struct Grid {
    pub(crate) columns: Vec<Column>,
    /// As many cells in each as there are columns.
    pub(crate) rows: Vec<Vec<String>>,
}

/// A column that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) index: usize,
    pub(crate) width: usize,
}

// === impl Column ===

impl Column {
    /// On the left, may be shortened.
    pub(crate) fn name(title: &'static str, goes: u8) -> Self {
        Self { title, kind: Kind::Name, goes }
    }

    /// On the right, and whole or not at all: a number without its end is another number.
    pub(crate) fn figure(title: &'static str, goes: u8) -> Self {
        Self { title, kind: Kind::Figure, goes }
    }

    /// Figures are as wide as most of them are, so that columns do not come and go with every redraw.
    fn usual(&self) -> usize {
        match self.kind {
            Kind::Name => 0,
            Kind::Figure => FIGURE,
        }
    }

    fn least(&self, natural: usize, name: usize) -> usize {
        match self.kind {
            Kind::Name => natural.min(name),
            Kind::Figure => natural,
        }
    }
}

// === impl Grid ===

impl Grid {
    /// With its header, no line wider than `room`.
    pub(crate) fn lines(&self, room: Option<usize>) -> Vec<String> {
        let placed = self.place(room);
        let header = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let rows = std::iter::once(&header).chain(&self.rows);
        let line = |row: &Vec<String>| {
            let cells = placed.iter().map(|at| self.cell(row, *at));
            cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
        };
        rows.map(line).collect()
    }

    /// Exactly as wide as its column.
    pub(crate) fn cell(&self, row: &[String], at: Placed) -> String {
        let text = shorten(row.get(at.index).map_or("", String::as_str), at.width);
        let space = " ".repeat(at.width.saturating_sub(width(&text)));
        match self.columns[at.index].kind {
            Kind::Name => text + &space,
            Kind::Figure => space + &text,
        }
    }

    pub(crate) fn place(&self, room: Option<usize>) -> Vec<Placed> {
        let natural = |index: usize, column: &Column| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| width(cell));
            Placed { index, width: cells.chain([width(column.title), column.usual()]).max().unwrap_or(0) }
        };
        let columns = self.columns.iter().enumerate();
        let mut placed: Vec<_> = columns.map(|(index, column)| natural(index, column)).collect();
        let Some(room) = room else { return placed };
        // Those that can be missed go before names become illegible; the others after.
        for (name, stays) in [(NAME, VITAL), (SHORT_NAME, 0)] {
            let least = |at: &Placed| self.columns[at.index].least(at.width, name);
            while total(placed.iter().map(least)) > room {
                let goes = |at: &usize| self.columns[placed[*at].index].goes;
                let Some(last) = (0..placed.len()).filter(|at| goes(at) > stays).max_by_key(goes) else {
                    break;
                };
                placed.remove(last);
            }
        }
        // The widest name gives way, then the next, one column of the terminal after the other.
        while total(placed.iter().map(|at| at.width)) > room {
            let names = placed.iter_mut().filter(|at| self.columns[at.index].kind == Kind::Name);
            match names.max_by_key(|at| at.width) {
                Some(widest) if widest.width > 1 => widest.width -= 1,
                Some(_) | None => break,
            }
        }
        placed
    }
}

fn total(widths: impl Iterator<Item = usize>) -> usize {
    let (count, sum) = widths.fold((0, 0), |(count, sum), width| (count + 1, sum + width));
    sum + GAP * usize::saturating_sub(count, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        Grid {
            columns: vec![
                Column::name("SERVICE", 0),
                Column::figure("RPS", 1),
                Column::figure("P99", 4),
                Column::name("WHY", 13),
            ],
            rows: vec![
                row(["shop/orders:80", "1,234", "4.6ms", "circuit-open"]),
                row(["shop/payments-authorization:8443", "2", "-", ""]),
            ],
        }
    }

    #[test]
    fn without_a_width_everything_is_whole() {
        assert_eq!(
            grid().lines(None),
            [
                "SERVICE                             RPS    P99  WHY",
                "shop/orders:80                    1,234  4.6ms  circuit-open",
                "shop/payments-authorization:8443      2      -",
            ]
        );
    }

    #[test]
    fn names_give_way_then_columns_go() {
        assert_eq!(
            grid().lines(Some(46)),
            [
                "SERVICE               RPS    P99  WHY",
                "shop/orders:80      1,234  4.6ms  circuit-open",
                "shop/pay…tion:8443      2      -",
            ]
        );
        assert_eq!(
            grid().lines(Some(30)),
            [
                "SERVICE                    RPS",
                "shop/orders:80           1,234",
                "shop/paymen…zation:8443      2",
            ]
        );
        assert_eq!(grid().lines(Some(8)), ["SERVICE", "sho…s:80", "sho…8443"]);
    }

    #[test]
    fn no_line_is_wider_than_the_room() {
        for room in 1..80 {
            for line in grid().lines(Some(room)) {
                assert!(width(&line) <= room, "{room}: {line:?}");
            }
        }
    }
}
