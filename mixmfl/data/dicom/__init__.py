"""DICOM files to series, and series to cases."""
