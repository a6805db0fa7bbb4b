"""From the files of finished runs to tables, figures, one web page, and recorded results."""
