//! Tables on the terminal.

/// Prints a table: columns of numbers to the right, all others to the left.
pub fn print_table(head: &[&str], rows: &[Vec<String>]) {
    for line in lines(head, rows) {
        println!("{line}");
    }
}

fn lines(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let columns: Vec<Column> = head
        .iter()
        .enumerate()
        .map(|(column, title)| Column::of(title, rows.iter().map(|row| row[column].as_str())))
        .collect();
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    [&head]
        .into_iter()
        .chain(rows)
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&columns)
                .map(|(cell, column)| column.padded(cell))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

struct Column {
    width: usize,
    is_number: bool,
}

impl Column {
    fn of<'a>(title: &str, cells: impl Iterator<Item = &'a str>) -> Self {
        let mut column = Self {
            width: title.chars().count(),
            is_number: true,
        };
        for cell in cells {
            column.width = column.width.max(cell.chars().count());
            column.is_number &= cell.bytes().all(|byte| byte.is_ascii_digit() || byte == b',');
        }
        column
    }

    fn padded(&self, cell: &str) -> String {
        let width = self.width;
        if self.is_number {
            format!("{cell:>width$}")
        } else {
            format!("{cell:<width$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right() {
        let row = |name: &str, number: &str| vec![name.to_owned(), number.to_owned()];
        let rows = [row("one", "1"), row("thousand", "1,000")];
        assert_eq!(
            ["name      count", "one           1", "thousand  1,000"].as_slice(),
            lines(&["name", "count"], &rows)
        );
    }
}
