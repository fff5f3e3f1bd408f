//! Whether a client is about to flush what it has just written.
//!
//! A database writes its log and flushes it, for each commit, and waits for both. Where that has been the way of the last few flushes,
//! stability is asked for with the write itself: its flush finds the copies on their way, or there, and a commit costs one round
//! trip to the peer instead of two. What is foreseen wrongly costs one flush that nobody asked for, and then nothing is foreseen
//! until the pattern is back.

/// Flushes of that kind in a row before the next one is foreseen.
const STREAK: u8 = 4;

/// What the last flushes were like.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Foresight {
    /// Flushes in a row before which there was one turn with writes.
    streak: u8,
    /// Turns with writes since the last flush; two stand for more.
    turns: u8,
    /// Something was written in this turn.
    wrote: bool,
}

impl Foresight {
    /// A client's write began.
    pub(super) fn write(&mut self) {
        self.wrote = true;
    }

    /// A client asks for a flush; `needless` when everything is stable already. That is no sign of a pattern, but no sign against one
    /// that was seen either: it may be what was hoped for.
    pub(super) fn flush(&mut self, needless: bool) {
        if self.turns == 1 && !needless {
            self.streak = (self.streak + 1).min(STREAK);
        }
        self.turns = 0;
    }

    /// A turn ends: is a flush of what it wrote to be expected?
    pub(super) fn turn_end(&mut self) -> bool {
        if !std::mem::take(&mut self.wrote) {
            return false;
        }
        self.turns = (self.turns + 1).min(2);
        if self.turns > 1 {
            self.streak = 0;
        }
        self.streak == STREAK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `w` (a write), `f` (a flush), `n` (a needless one) and `.` (the end of a turn); the turns, counted from 1, whose end
    /// foresees a flush.
    fn foreseen(script: &str) -> Vec<usize> {
        let (mut foresight, mut turn, mut found) = (Foresight::default(), 0, Vec::new());
        for word in script.chars() {
            match word {
                'w' => foresight.write(),
                'f' => foresight.flush(false),
                'n' => foresight.flush(true),
                '.' => {
                    turn += 1;
                    if foresight.turn_end() {
                        found.push(turn);
                    }
                }
                other => panic!("{other:?} is no word of a script"),
            }
        }
        found
    }

    #[test]
    fn a_flush_is_foreseen_after_four_of_its_kind() {
        assert_eq!(foreseen("w.f.w.f.w.f.w.f.w.f.w.f."), [9, 11]);
        assert_eq!(foreseen("ww.f.www.f.w.f.w.f.w."), [9], "many writes in one turn are as good");
        assert_eq!(foreseen("w.fw.fw.fw.fw.fw."), [5, 6], "another client's write comes with the flush");
    }

    #[test]
    fn a_needless_flush_begins_no_pattern_and_ends_none() {
        assert_eq!(foreseen("w.n.w.n.w.n.w.n.w.n.w.n.w."), [0; 0], "copies without a cache are asked for nothing");
        assert_eq!(foreseen("w.f.w.f.w.f.w.f.w.n.w.n.w."), [9, 11, 13], "each was there in time");
    }

    #[test]
    fn writes_without_a_flush_end_it() {
        assert_eq!(foreseen("w.f.w.f.w.f.w.f.w.w.f.w.f.w.f.w.f."), [9], "wrong once, and then silent");
        assert_eq!(foreseen("w.w.f.w.w.f.w.w.f.w.w.f.w.w.f.w."), [0; 0]);
        assert_eq!(foreseen("w.f.f.f.f.f.w."), [0; 0], "flushes of nothing are no sign");
    }
}
