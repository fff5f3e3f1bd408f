//! What one client has asked and is still owed an answer to: its requests, and the pieces of them that the machine has.
//!
//! A request goes to the machine in one piece or in several; it is answered once, when all of them are done. The machine knows
//! pieces only, by their tags.

use super::session::Kind;
use crate::nbd::ReplyTo;
use crate::units::ByteRange;

/// An unanswered request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) to: ReplyTo,
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    /// A flush must follow the last piece before the answer.
    pub(super) flush_after: bool,
    /// A piece failed.
    pub(super) failed: bool,
    /// Pieces are still to come.
    open: bool,
    /// Pieces that the machine has.
    pieces: usize,
}

/// Number of a request within its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AskedNo(usize);

#[derive(Clone, Copy, Debug)]
struct Piece {
    of: AskedNo,
    range: ByteRange,
}

/// What the machine's answer to a piece means.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) asked: Asked,
    pub(super) no: AskedNo,
    /// What the piece covered.
    pub(super) range: ByteRange,
    /// No piece is with the machine and none is to come.
    pub(super) complete: bool,
}

/// The requests of one client. Places are used again, so that a request allocates nothing once the client has reached its depth.
#[derive(Debug, Default)]
pub(super) struct Requests {
    asked: Vec<Option<Asked>>,
    free: Vec<usize>,
    pieces: Vec<Option<Piece>>,
    free_tags: Vec<usize>,
}

impl Requests {
    /// Pieces that the machine has.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len() - self.free_tags.len()
    }

    /// Notes a request whose pieces follow.
    pub(super) fn begin(&mut self, to: ReplyTo, kind: Kind, range: ByteRange, flush_after: bool) -> AskedNo {
        let asked = Asked { to, kind, range, flush_after, failed: false, open: true, pieces: 0 };
        AskedNo(place(&mut self.asked, &mut self.free, asked))
    }

    /// Notes a piece that goes to the machine; its tag. `last` when none follows.
    pub(super) fn piece(&mut self, of: AskedNo, range: ByteRange, last: bool) -> u64 {
        let asked = self.asked[of.0].as_mut().expect("pieces come before the answer");
        assert!(asked.open, "the last piece was the last");
        asked.pieces += 1;
        asked.open = !last;
        u64::try_from(place(&mut self.pieces, &mut self.free_tags, Piece { of, range })).expect("few pieces")
    }

    /// Notes the machine's answer to a piece.
    ///
    /// # Panics
    /// When no such piece is with the machine.
    pub(super) fn answer(&mut self, tag: u64, succeeded: bool) -> Answered {
        let tag = usize::try_from(tag).expect("tags are indices");
        let Piece { of, range } = self.pieces[tag].take().expect("each piece is answered once");
        self.free_tags.push(tag);
        let asked = self.asked[of.0].as_mut().expect("answered after its last piece");
        asked.pieces -= 1;
        asked.failed |= !succeeded;
        Answered { asked: *asked, no: of, range, complete: asked.pieces == 0 && !asked.open }
    }

    /// A flush follows, as the request's last piece.
    pub(super) fn flush(&mut self, no: AskedNo) -> u64 {
        let asked = self.asked[no.0].as_mut().expect("not answered before its flush");
        (asked.flush_after, asked.open) = (false, true);
        self.piece(no, ByteRange::new(0, 0), true)
    }

    /// Forgets a request that is answered.
    pub(super) fn end(&mut self, no: AskedNo) {
        self.asked[no.0] = None;
        self.free.push(no.0);
    }
}

fn place<T>(list: &mut Vec<Option<T>>, free: &mut Vec<usize>, value: T) -> usize {
    if let Some(i) = free.pop() {
        list[i] = Some(value);
        return i;
    }
    list.push(Some(value));
    list.len() - 1
}
