//! Text tables with aligned columns, for people.
//!
//! A cell may come from a hostile peer (a file's name, say): control characters are shown escaped, so that
//! nothing a peer sends reaches the terminal as a command.

use std::fmt;
use std::fmt::Write as _;

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table that is printed once it is complete.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// Makes an empty table with these columns.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
            indent: 0,
        }
    }

    /// Moves the whole table to the right by `columns` spaces.
    pub fn indent(mut self, columns: usize) -> Self {
        self.indent = columns;
        self
    }

    /// Adds a row; missing cells stay empty.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert!(N <= self.columns.len(), "more cells than columns");
        self.rows
            .push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Whether the table has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).into())
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                std::iter::once(&header)
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let headed = header.iter().any(|name| !name.is_empty());
        for row in headed.then_some(&header).into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (index, ((_, align), width)) in self.columns.iter().zip(&widths).enumerate() {
                let cell = row.get(index).map_or("", String::as_str);
                let gap = if index == 0 { 0 } else { 2 };
                match align {
                    Align::Left => write!(line, "{:gap$}{cell:<width$}", "")?,
                    Align::Right => write!(line, "{:gap$}{cell:>width$}", "")?,
                }
            }
            writeln!(f, "{:indent$}{}", "", line.trim_end(), indent = self.indent)?;
        }
        Ok(())
    }
}

/// Shows control characters as escapes and leaves all others alone.
pub fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control();
            let plain = (!escaped).then_some(c);
            let escape = escaped.then(|| c.escape_default());
            plain.into_iter().chain(escape.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right)]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "1024".into()]);
        table.row(["x".into()]);
        assert_eq!(
            table.to_string(),
            "name    size\n\
             a          1\n\
             longer  1024\n\
             x\n"
        );
    }

    #[test]
    fn table_without_column_names_has_no_header() {
        let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]).indent(2);
        table.row(["Seccomp".into(), "2".into()]);
        assert_eq!(table.to_string(), "  Seccomp  2\n");
    }

    #[test]
    fn control_characters_of_a_cell_are_escaped() {
        let mut table = Table::new(&[("", Align::Left)]);
        table.row(["evil\u{1b}[2J\nname é".into()]);
        assert_eq!(table.to_string(), "evil\\u{1b}[2J\\nname é\n");
    }
}
