-- A music shop as it might have grown: names in mixed case, foreign keys that cascade, a hierarchy of employees, a composite key,
-- a trigger of the application's own, and things that no cache can hold.
PRAGMA journal_mode = WAL;
CREATE TABLE Artist (ArtistId INTEGER PRIMARY KEY AUTOINCREMENT, Name NVARCHAR(120));
CREATE TABLE Album (
    AlbumId INTEGER NOT NULL PRIMARY KEY,
    Title NVARCHAR(160) NOT NULL,
    ArtistId INTEGER NOT NULL REFERENCES Artist (ArtistId) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX AlbumByArtist ON Album (ArtistId);
CREATE TABLE Genre (GenreId INTEGER PRIMARY KEY, Name NVARCHAR(120) UNIQUE COLLATE NOCASE);
CREATE TABLE MediaType (MediaTypeId INTEGER PRIMARY KEY, Name NVARCHAR(120) NOT NULL DEFAULT 'MPEG');
CREATE TABLE Track (
    TrackId INTEGER PRIMARY KEY,
    Name NVARCHAR(200) NOT NULL,
    AlbumId INTEGER REFERENCES Album (AlbumId) ON DELETE SET NULL,
    GenreId INTEGER REFERENCES Genre (GenreId) ON DELETE SET NULL,
    Milliseconds INTEGER NOT NULL CHECK (Milliseconds > 0),
    Bytes INTEGER,
    Cover BLOB,
    UnitPrice NUMERIC(10, 2) NOT NULL,
    Minutes REAL AS (round(Milliseconds / 60000.0, 2)) STORED,
    Label TEXT AS (Name || ' / ' || UnitPrice)
);
CREATE TABLE Playlist (PlaylistId INTEGER PRIMARY KEY, Name NVARCHAR(120));
CREATE TABLE PlaylistTrack (
    PlaylistId INTEGER NOT NULL REFERENCES Playlist (PlaylistId) ON DELETE CASCADE,
    TrackId INTEGER NOT NULL REFERENCES Track (TrackId) ON DELETE CASCADE,
    CONSTRAINT PK_PlaylistTrack PRIMARY KEY (PlaylistId, TrackId)
);
CREATE TABLE Employee (
    EmployeeId INTEGER PRIMARY KEY,
    LastName NVARCHAR(20) NOT NULL,
    ReportsTo INTEGER REFERENCES Employee (EmployeeId) ON DELETE SET NULL,
    BirthDate DATETIME,
    Email NVARCHAR(60) UNIQUE ON CONFLICT REPLACE
);
CREATE TABLE Customer (
    CustomerId INTEGER PRIMARY KEY,
    "First Name" NVARCHAR(40) NOT NULL,
    Email NVARCHAR(60) NOT NULL COLLATE NOCASE,
    SupportRepId INTEGER REFERENCES Employee (EmployeeId) ON DELETE SET NULL
);
CREATE UNIQUE INDEX CustomerByEmail ON Customer (lower(Email)) WHERE Email <> '';
CREATE TABLE Invoice (
    InvoiceId INTEGER PRIMARY KEY,
    CustomerId INTEGER NOT NULL REFERENCES Customer (CustomerId) ON DELETE CASCADE,
    InvoiceDate DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    Total NUMERIC(10, 2) NOT NULL DEFAULT 0
);
CREATE TABLE InvoiceLine (
    InvoiceId INTEGER REFERENCES Invoice (InvoiceId) ON DELETE CASCADE,
    Line INTEGER,
    TrackId INTEGER NOT NULL REFERENCES Track (TrackId) ON DELETE CASCADE,
    Quantity INTEGER NOT NULL,
    PRIMARY KEY (InvoiceId, Line)
) WITHOUT ROWID;
CREATE TRIGGER Totals AFTER INSERT ON InvoiceLine BEGIN
    UPDATE Invoice SET Total = (SELECT sum(l.Quantity * t.UnitPrice) FROM InvoiceLine l JOIN Track t USING (TrackId) WHERE l.InvoiceId = NEW.InvoiceId)
    WHERE InvoiceId = NEW.InvoiceId;
END;
CREATE VIEW BestSellers AS SELECT TrackId, sum(Quantity) AS Sold FROM InvoiceLine GROUP BY TrackId ORDER BY 2 DESC;
CREATE VIRTUAL TABLE TrackWords USING fts5 (Name);
CREATE TABLE Clicks (At, Page);
INSERT INTO Artist (Name) VALUES ('Ada & the Engines'), ('Größenwahn'), (NULL), ('O''Hara');
INSERT INTO Album VALUES (1, 'Difference', 1), (2, 'Analytical', 1), (3, 'Über alles', 2), (4, 'Untitled', 3);
INSERT INTO Genre VALUES (1, 'Rock'), (2, 'Jazz'), (3, 'Polka');
INSERT INTO MediaType VALUES (1, 'MPEG'), (2, 'AAC');
INSERT INTO Playlist VALUES (1, 'Morning'), (2, NULL), (3, 'Night');
INSERT INTO Employee VALUES
    (1, 'Adams', NULL, '1962-02-18', 'andrew@example.com'), (2, 'Edwards', 1, '1958-12-08', 'nancy@example.com'), (3, 'Park', 2, NULL, NULL);
INSERT INTO Customer VALUES (1, 'Luís', 'luis@example.com', 3), (2, 'Helena', 'helena@example.com', 3), (3, 'Eno', '', NULL);
WITH n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO Track (TrackId, Name, AlbumId, GenreId, Milliseconds, Bytes, Cover, UnitPrice)
SELECT i, 'Track ' || i, 1 + i % 4, 1 + i % 3, 1000 * i, 9007199254740990 + i, CASE i % 5 WHEN 0 THEN randomblob(20) END, 0.99 + i % 2 FROM n;
INSERT INTO PlaylistTrack SELECT 1 + TrackId % 3, TrackId FROM Track;
INSERT INTO Invoice (InvoiceId, CustomerId, InvoiceDate) VALUES (1, 1, '2026-01-01 10:00:00'), (2, 2, '2026-01-02 11:00:00');
INSERT INTO InvoiceLine VALUES (1, 1, 7, 1), (1, 2, 8, 2), (2, 1, 7, 3);
