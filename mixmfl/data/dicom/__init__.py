"""From DICOM files to series, and from series to cases."""
