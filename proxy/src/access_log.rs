//! One line per request or connection, to standard output or a file: JSON (`json.rs`), or as the user's format says
//! (`format.rs`). What a filter (`only.rs`) holds back is counted and never formatted.
//!
//! A worker formats the line where it will be written from, at the end of its lane; one thread empties the lanes. Neither
//! ever waits for the other, also when the system suspends it in the middle of its work: whoever works on a batch has taken
//! it out. A lane is bounded: when whoever reads the log stands still, lines are dropped and counted, and traffic goes on.
//! The thread sleeps while nothing happens. The first line wakes it and is written at once; those that follow gather for a
//! moment, because to wake up costs it as much as to write dozens of lines.
//!
//! ```text
//!  worker 0 ── lane 0 ─┐
//!  worker 1 ── lane 1 ─┼─▶ thread "access-log" ─▶ stdout or file
//!  …                   ┘     (takes the lane's batch, and gives it back empty)
//! ```
//!
//! Callers choose most of what is in a line, so everything is escaped: one record is one line, whatever is in it. Query
//! strings, headers and bodies are not logged.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt as _},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    thread::{self, Thread},
    time::{Duration, Instant, SystemTime},
};

use crossbeam_utils::atomic::AtomicCell;

use crate::telemetry::{ConnectionRecord, RequestRecord};

mod encode;
mod field;
mod format;
mod json;
mod only;

#[cfg(test)]
mod tests;

pub use format::Format;
pub use only::Only;

/// A lane in which so many bytes wait takes no further line: 5,000 or so, for a disk that stands still for a second. The
/// memory is taken only then.
const LANE_BYTES: usize = 2 * 1024 * 1024;
/// How long lines may gather before they are written, under load.
const GATHER: Duration = Duration::from_millis(100);
/// So much in one lane is written without waiting for more.
const ENOUGH_BYTES: usize = 128 * 1024;
/// A buffer that grew beyond this is given back once it has been written.
const KEEP_BYTES: usize = 2 * ENOUGH_BYTES;
/// And one beyond this in the first pause: what lines have gathered in is made anew only for the next load.
const KEEP_IDLE_BYTES: usize = 16 * 1024;
/// How long is waited for room in a pipe that does not block.
const FULL: Duration = Duration::from_millis(10);

/// The log of the process; clones share it.
#[derive(Clone)]
pub struct AccessLog {
    /// `None`: off.
    sink: Option<Arc<Sink>>,
    /// `None`: JSON.
    format: Option<Format>,
    only: Only,
}

/// A worker's way into the log.
pub struct Lane(Option<Open>);

struct Open {
    queue: Arc<Queue>,
    sink: Arc<Sink>,
    only: Only,
    form: Form,
}

/// What lines look like, and what it takes to write them.
struct Form {
    /// `None`: JSON.
    format: Option<Format>,
    scratch: format::Scratch,
    clock: encode::Clock,
}

struct Sink {
    queues: Mutex<Vec<Arc<Queue>>>,
    writer: OnceLock<Thread>,
    /// The writer has seen nothing in any lane, and waits for the first line.
    idle: AtomicBool,
    dropped: AtomicU64,
    // Raised to ask the writer for a confirmation that everything before has been written.
    flush_asked: AtomicU64,
    flush_done: AtomicU64,
    write_failed: AtomicBool,
}

/// Lines that wait to be written. Boxed, so that a cell can hand it over in one step.
#[derive(Default)]
struct Batch(Vec<u8>);

#[derive(Default)]
struct Queue {
    /// Put in by the worker alone, which takes it out for a moment to append; `None` meanwhile, and when there is none.
    lines: AtomicCell<Option<Box<Batch>>>,
    /// One that was written, for the worker to use again.
    spare: AtomicCell<Option<Box<Batch>>>,
    /// Held back by the filter. Written by the lane's worker alone.
    filtered: AtomicU64,
}

// === impl AccessLog ===

impl AccessLog {
    pub fn off() -> Self {
        Self { sink: None, format: None, only: Only::default() }
    }

    pub fn stdout() -> io::Result<Self> {
        // A duplicate of the descriptor, because `std::io::Stdout` has a lock and a buffer of its own.
        Self::to(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// Appends, so that a log rotation by copy and truncate works.
    pub fn file(path: &Path) -> io::Result<Self> {
        // To open a pipe for writing alone waits until somebody reads it, and nothing may wait for a log's reader.
        let is_pipe = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
        Self::to(OpenOptions::new().create(true).append(true).read(is_pipe).open(path)?)
    }

    fn to(file: impl Write + Send + 'static) -> io::Result<Self> {
        let sink = Arc::new(Sink {
            queues: Mutex::default(),
            writer: OnceLock::new(),
            idle: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            flush_asked: AtomicU64::new(0),
            flush_done: AtomicU64::new(0),
            write_failed: AtomicBool::new(false),
        });
        let for_writer = Arc::clone(&sink);
        let thread =
            thread::Builder::new().name("access-log".to_owned()).spawn(move || for_writer.run(file))?;
        sink.writer.get_or_init(|| thread.thread().clone());
        Ok(Self { sink: Some(sink), format: None, only: Only::default() })
    }

    /// In this format (`None`: JSON), and only what passes. For the lanes that are made from now on.
    pub fn shaped(self, format: Option<Format>, only: Only) -> Self {
        Self { format, only, ..self }
    }

    pub fn lane(&self) -> Lane {
        Lane(self.sink.as_ref().map(|sink| {
            let queue = Arc::<Queue>::default();
            lock(&sink.queues).push(Arc::clone(&queue));
            Open {
                queue,
                sink: Arc::clone(sink),
                only: self.only.clone(),
                form: Form {
                    format: self.format.clone(),
                    scratch: format::Scratch::default(),
                    clock: encode::Clock::default(),
                },
            }
        }))
    }

    /// Lines that found no place or could not be written.
    pub fn dropped(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.dropped.load(Ordering::Relaxed))
    }

    /// Lines that the filter held back.
    pub fn filtered(&self) -> u64 {
        let of_all = |sink: &Arc<Sink>| {
            lock(&sink.queues).iter().map(|queue| queue.filtered.load(Ordering::Relaxed)).sum()
        };
        self.sink.as_ref().map_or(0, of_all)
    }

    /// Waits until what was logged before the call is written, but not beyond `within`. It does not count what a worker has
    /// taken out, to append to it, in the very moment in which the writer looks.
    pub fn flush(&self, within: Duration) {
        let Some(sink) = &self.sink else { return };
        let deadline = Instant::now() + within;
        let ticket = sink.flush_asked.fetch_add(1, Ordering::AcqRel) + 1;
        sink.wake();
        while sink.flush_done.load(Ordering::Acquire) < ticket && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

// === impl Lane ===

impl Lane {
    pub fn request(&mut self, record: &RequestRecord<'_>) {
        let Some(open) = &mut self.0 else { return };
        if !open.only.request(record) {
            return open.queue.count_filtered();
        }
        open.push(|form, lines| {
            let (clock, now) = (&mut form.clock, SystemTime::now());
            match &form.format {
                None => json::request(lines, clock, now, record),
                Some(format) => format.request(lines, &mut form.scratch, clock, now, record),
            }
        });
    }

    pub fn connection(&mut self, record: &ConnectionRecord<'_>) {
        let Some(open) = &mut self.0 else { return };
        if !open.only.connection(record) {
            return open.queue.count_filtered();
        }
        open.push(|form, lines| {
            let (clock, now) = (&mut form.clock, SystemTime::now());
            match &form.format {
                None => json::connection(lines, clock, now, record),
                Some(format) => format.connection(lines, &mut form.scratch, clock, now, record),
            }
        });
    }
}

impl Open {
    /// Has the line written into the lane, or drops and counts it.
    fn push(&mut self, write: impl FnOnce(&mut Form, &mut Vec<u8>)) {
        let queue = &self.queue;
        let mut batch = queue.lines.take().or_else(|| queue.spare.take()).unwrap_or_default();
        let before = batch.0.len();
        let fits = before < LANE_BYTES;
        if fits {
            write(&mut self.form, &mut batch.0);
        }
        let grown = before..batch.0.len();
        queue.lines.store(Some(batch));
        if grown.contains(&ENOUGH_BYTES) {
            self.sink.wake();
        } else if fits {
            // Not the first line alone: the thread may have looked while the batch was out.
            self.sink.wake_if_idle();
        } else {
            self.sink.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Queue {
    /// Gives back what a load needed, if it is over.
    fn shrink(&self) {
        if let Some(batch) = self.spare.take()
            && batch.0.capacity() <= KEEP_IDLE_BYTES
        {
            self.spare.store(Some(batch));
        }
    }

    fn count_filtered(&self) {
        // Nobody else writes it.
        self.filtered.store(self.filtered.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

// === impl Sink ===

impl Sink {
    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// After a line was put into a lane. Of the two fences, here and where the flag is raised, one comes first: either the
    /// flag is seen here, or the line there.
    fn wake_if_idle(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// The life of the writer thread; ends with the process, or when no log and no lane is left.
    fn run(self: Arc<Self>, mut file: impl Write) {
        let mut torn = false;
        loop {
            let ticket = self.flush_asked.load(Ordering::Acquire);
            let queues: Vec<_> = lock(&self.queues).iter().map(Arc::clone).collect();
            let mut wrote = false;
            for queue in &queues {
                let Some(mut batch) = queue.lines.take() else { continue };
                wrote = true;
                self.write(&mut file, &batch.0, &mut torn);
                batch.0.clear();
                if batch.0.capacity() <= KEEP_BYTES {
                    queue.spare.store(Some(batch));
                }
            }
            self.flush_done.store(ticket, Ordering::Release);
            if wrote {
                self.idle.store(false, Ordering::Relaxed);
                thread::park_timeout(GATHER);
            } else if Arc::strong_count(&self) == 1 {
                return;
            } else if self.idle.swap(true, Ordering::Relaxed) {
                queues.iter().for_each(|queue| queue.shrink());
                // The timeout lets the thread notice that everybody else is gone.
                thread::park_timeout(Duration::from_secs(5));
            }
            // Else once more: from now on a line wakes this thread, one that came before does not.
            fence(Ordering::SeqCst);
        }
    }

    /// `torn`: what was written so far ends within a line, whose rest must not become the beginning of another.
    fn write(&self, file: &mut impl Write, batch: &[u8], torn: &mut bool) {
        if *torn && let (_, Some(error)) = write(file, b"\n") {
            return self.fail(batch, &error);
        }
        let (written, error) = write(file, batch);
        *torn = batch[..written].last().is_some_and(|last| *last != b'\n');
        match error {
            None => self.write_failed.store(false, Ordering::Relaxed),
            Some(error) => self.fail(&batch[written..], &error),
        }
    }

    fn fail(&self, unwritten: &[u8], error: &io::Error) {
        // A line that lacks its end alone is there, and gets it before the next one.
        let unwritten = unwritten.strip_prefix(b"\n").unwrap_or(unwritten);
        let lines = unwritten.iter().filter(|byte| **byte == b'\n').count();
        self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
        if !self.write_failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "cannot write the access log; lines are dropped and counted until it works again");
        }
    }
}

/// As `write_all`, but says how much of it was written.
fn write(file: &mut impl Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process has made a pipe that we share so.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
