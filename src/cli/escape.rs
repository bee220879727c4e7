//! Text that is safe to print on a terminal.

use std::fmt::{self, Display, Write};

/// A message that is safe to print on a terminal: escapes bytes that are not UTF-8, and characters that move the cursor or hide
/// or reorder text.
pub(super) struct Printable<'a>(pub(super) &'a [u8]);

impl Display for Printable<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_first = true;
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                write_printable(character, is_first, formatter)?;
                is_first = false;
            }
            for byte in chunk.invalid() {
                write!(formatter, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Escapes the text that is written through it as [`Printable`] does.
pub(super) struct Escaped<W>(pub(super) W);

impl<W: Write> Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return self.0.write_str(text);
        }
        text.chars().try_for_each(|character| write_printable(character, false, &mut self.0))
    }
}

fn write_printable(character: char, is_first: bool, formatter: &mut impl Write) -> fmt::Result {
    match character {
        // `escape_debug` escapes quotes and backslashes for Rust's literals: on a terminal they are harmless.
        '"' | '\'' | '\\' | ' '..='~' => formatter.write_char(character),
        _ if is_bidi_control(character) || is_invisible(character) => {
            write!(formatter, "{}", character.escape_unicode())
        }
        // `str::escape_debug` escapes a combining mark only as the first character, `char::escape_debug` everywhere.
        _ if is_first => character.escape_debug().try_for_each(|escaped| formatter.write_char(escaped)),
        _ => {
            let mut text = [b'a'; 5];
            let length = character.encode_utf8(&mut text[1..]).len();
            let text = std::str::from_utf8(&text[..=length]).unwrap_or_default();
            text.escape_debug().skip(1).try_for_each(|escaped| formatter.write_char(escaped))
        }
    }
}

/// Returns whether a character reorders the text around it (Unicode Standard Annex 9, 2). `escape_debug` does not escape all of them.
fn is_bidi_control(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns whether a character shows nothing and `escape_debug` does not escape it after others: the characters of
/// `Default_Ignorable_Code_Point` (Unicode Standard Annex 44), the blank Braille pattern and the null notehead.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{ffa0}'
            | '\u{1d159}'
            | '\u{e0100}'..='\u{e01ef}'
    )
}
